"""Replay points: the state before a rollout's first step, with all of its minibatches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from entropy_lab.train.checkpoint import complete_checkpoints, save_checkpoint
from entropy_lab.train.packing import pack
from entropy_lab.train.parts import Parts
from entropy_lab.train.policy import Micro


def save_replay_point(
    run_dir: Path, parts: Parts, steps: list[list[Micro]], memory: Mapping, rollout: int
) -> None:
    """Keep the state before a rollout's first step and all of its minibatches.

    replay/step-NNNNNN is complete or absent. memory: the method's, before it saw the rollout.
    """
    tensors = {k: v for i, part in enumerate(steps) for k, v in pack(part, f"age{i}").items()}
    state = {"rollout": rollout, "minibatches": len(steps), "method": dict(memory)}
    keep = parts.config.train.keep_replays
    parts.world.fill()
    save_checkpoint(
        run_dir,
        parts.probe.step,
        parts.model,
        parts.optimizer,
        state,
        tensors,
        keep,
        "replay",
        world=parts.world,
    )


def replay_points(run_dir: Path | str) -> list[Path]:
    """The complete replay points of a run, by step."""
    return complete_checkpoints(run_dir, "replay")
