"""Where a run goes on: its newest checkpoint that the log reaches."""

from __future__ import annotations

from pathlib import Path

from entropy_lab.errors import RunError
from entropy_lab.record import Run
from entropy_lab.train.checkpoint import complete_checkpoints
from entropy_lab.train.config import Config


def continuation(run: Run, checkpoint: Path | None, config: Config) -> str:
    """What a resume found, where it goes on and what it drops, in one or two lines."""
    step = step_of(checkpoint) if checkpoint else 0
    where = f"step {step}, rollout {step // config.train.minibatches + 1}"
    found = f"resuming from {checkpoint}" if checkpoint else f"{run.path} has no checkpoint yet"
    lines = [f"{found}: going on at {where} of {config.train.rollouts}"]
    logged = 0 if run.last_step is None else run.last_step + 1 - step
    if logged > 0:
        which = f"{step} to {run.last_step}" if logged > 1 else f"{step}"
        lines.append(
            f"dropping {logged} logged step{'s' * (logged > 1)} beyond it ({which}), to be taken "
            "again"
        )
    return "\n".join(lines)


def newest_checkpoint(run: Run, config: Config) -> Path | None:
    """The newest complete checkpoint that the log reaches; None for a run that had none yet."""
    last = -1 if run.last_step is None else run.last_step
    found = [p for p in complete_checkpoints(run.path) if step_of(p) <= last + 1]
    done = step_of(found[-1]) // config.train.minibatches if found else 0
    if done >= config.train.rollouts:
        raise RunError(
            f"{run.path} has finished its {config.train.rollouts} rollouts: raise them with "
            f"--set train.rollouts={2 * config.train.rollouts}"
        )
    every = config.train.checkpoint_every * config.train.minibatches
    if not found and (run.info["status"] == "finished" or (every and last + 1 > every)):
        raise RunError(
            f"{run.path} has no complete checkpoint under checkpoints/, though it has reached step "
            f"{last}: put one back, or start anew with another --out"
        )
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
