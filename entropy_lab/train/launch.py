"""Start or continue a run: settings in, run directory out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import make_method
from entropy_lab.record import Run, create_run, open_run, rewind, run_lock, set_status
from entropy_lab.record.manifest import update_info
from entropy_lab.record.merge import merge_parts
from entropy_lab.train.best import score_name
from entropy_lab.train.checkpoint import best_checkpoint, complete_checkpoints, cut_checkpoints
from entropy_lab.train.config import Config, config_from_dict, load_config, override
from entropy_lab.train.cost import announced, estimated_cost, measured_cost, reported
from entropy_lab.train.dry_run import describe
from entropy_lab.train.pretrained import device_of
from entropy_lab.train.schedule import scheduled_steps

# Sections that the settings of earlier versions lack.
_ADDED = {"eval", "tracker", "vllm", "reward"}
# What may differ when a run goes on: how long, how often it is saved, who else is told, and the
# limits that an error asks to change.
_RESUMABLE = (
    "train.rollouts",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_replays",
    "train.max_log_gb",
    "tracker.name",
    "tracker.project",
    "rollout.max_prompt_tokens",
    "rollout.long_prompts",
    "vllm.python",
    "vllm.tolerance",
    "vllm.max_model_len",
)


def run_training(
    path: Path | None,
    overrides: list[str],
    out: Path | None,
    *,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Train as the settings say; returns the run directory.

    path: a TOML file, None for the packaged demo; overrides: "section.key=value"; out: the run
    directory, by default runs/<run.name>, numbered where that is taken. resume: continue the run
    in `out` from its latest checkpoint with its own settings. dry_run: print what would be done.
    Raises ConfigError for wrong settings, RunError where the directory is in the way or cannot be
    written, KeyboardInterrupt after Ctrl-C (the run is saved).
    """
    if resume:
        return _resume(path, overrides, out, dry_run)
    config = load_config(path, overrides)
    if dry_run:
        print(describe(config, out or _default_out(config)))
        return out or _default_out(config)
    run_dir = create_run(
        out or _default_out(config),
        saved(config.to_dict()),
        seeds={"run": config.run.seed, "model": config.model.seed},
        extra=_facts(config),
    )
    with run_lock(run_dir):
        return _train(config, run_dir, None)


def _resume(path: Path | None, overrides: list[str], out: Path | None, dry_run: bool) -> Path:
    if out is None:
        raise ConfigError("--resume needs --out DIR, the run directory to continue")
    if path is not None:
        raise ConfigError(f"--resume takes its settings from {out / 'run.json'}: leave {path} out")
    run = open_run(out)
    config = _saved_config(run, overrides)
    if dry_run:
        print(describe(config, out))
        print(_continuation(run, _checkpoint(run, config), config))
        return out
    with run_lock(out):
        run = open_run(out)
        checkpoint = _checkpoint(run, config)
        step = _step(checkpoint) if checkpoint else 0
        print(_continuation(run, checkpoint, config))
        if not config.run.threads:
            # Sums are split over threads: another number would change the last bits.
            torch.set_num_threads(int(run.info.get("threads") or torch.get_num_threads()))
        rewind(out, step - 1)
        merge_parts(out)
        cut_checkpoints(out, step)
        set_status(out, "running", config=saved(config.to_dict()))
        return _train(config, out, checkpoint)


def is_ours(settings: dict[str, Any]) -> bool:
    """Whether these are settings of the bundled trainer, of this version or an earlier one."""
    return set(Config().to_dict()) - _ADDED <= set(settings)


def _saved_config(run: Run, overrides: list[str]) -> Config:
    """The run's own settings with what may change; ConfigError where it has none of ours."""
    settings, where = restored(run.info["config"]), str(run.path / "run.json")
    if not is_ours(settings):
        raise ConfigError(
            f"{where} holds no settings of `entropy-lab train`: only its runs can be continued "
            "by it; a loop of your own continues with Probe(..., start_step=...)"
        )
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key not in _RESUMABLE:
            raise ConfigError(
                f"{key} cannot change when a run is continued; what can: {', '.join(_RESUMABLE)}"
            )
        override(settings, text)
    config = config_from_dict(settings, where)
    _check_schedule(config, config_from_dict(restored(run.info["config"]), where))
    return config


def _check_schedule(config: Config, before: Config) -> None:
    """A rate that falls over the run's steps would have been another one from the start."""
    kept = scheduled_steps(config) == scheduled_steps(before)
    if config.optimizer.schedule != "constant" and not kept:
        raise ConfigError(
            f"train.rollouts cannot change: optimizer.schedule = {config.optimizer.schedule!r} "
            f"falls over the run's {scheduled_steps(before)} steps, so the steps already taken "
            "would have had another rate; for runs to be extended set optimizer.schedule_steps"
        )


def _continuation(run: Run, checkpoint: Path | None, config: Config) -> str:
    """What a resume found, where it goes on and what it drops, in one or two lines."""
    step = _step(checkpoint) if checkpoint else 0
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


def _checkpoint(run: Run, config: Config) -> Path | None:
    """The newest complete checkpoint that the log reaches; None for a run that had none yet."""
    last = -1 if run.last_step is None else run.last_step
    found = [p for p in complete_checkpoints(run.path) if _step(p) <= last + 1]
    done = _step(found[-1]) // config.train.minibatches if found else 0
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


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _train(config: Config, run_dir: Path, checkpoint: Path | None) -> Path:
    from entropy_lab.train.loop import train
    from entropy_lab.train.progress import Progress

    if line := announced(config):
        print(line)
    try:
        with Progress(run_dir, config) as progress:
            finished = train(config, run_dir, checkpoint, progress)
    except KeyboardInterrupt:
        _mark(run_dir, "interrupted")
        raise
    except ConfigError:
        # Nothing was trained: the directory stays free for the corrected settings.
        if checkpoint is None and open_run(run_dir).last_step is None:
            for name in ("run.json", "metrics.jsonl"):
                (run_dir / name).unlink(missing_ok=True)
        else:
            _mark(run_dir, "failed")
        raise
    except Exception:
        _mark(run_dir, "failed")
        raise
    _tell_cost(config, run_dir)
    if config.train.keep_best and (best := best_checkpoint(run_dir)):
        print(f"best checkpoint by {score_name(config)}: {best[0]} ({best[1]:.4g})")
    if not finished:
        print(f"stopped and saved; continue with: entropy-lab train --resume --out {run_dir}")
        raise KeyboardInterrupt
    return run_dir


def _tell_cost(config: Config, run_dir: Path) -> None:
    """Print what the probe cost and keep it, with the estimate, in run.json."""
    found = measured_cost(open_run(run_dir).metrics()) if config.probe.enabled else {}
    if found:
        estimated = sum(estimated_cost(config).values())
        update_info(run_dir, probe_cost={"estimated_share": estimated, **found})
        print(reported(found))


def _mark(run_dir: Path, status: str) -> None:
    """The run's status after an error, where the directory still takes it."""
    try:
        if open_run(run_dir).info["status"] == "running":
            set_status(run_dir, status)
    except RunError:
        pass  # the error under way says why


def _default_out(config: Config) -> Path:
    base = Path("runs") / config.run.name
    taken = 2
    path = base
    while path.exists():
        path, taken = base.with_name(f"{base.name}-{taken}"), taken + 1
    return path


def _facts(config: Config) -> dict[str, Any]:
    """What run.json says beyond the settings: the method with its defaults, and the hardware."""
    method = make_method(config.method.name, **config.method.params)
    return {
        "method": {"name": config.method.name, "source": method.source, **saved(asdict(method))},
        "unconfirmed": method.unconfirmed,  # which of the method's constants no source confirmed
        "device": device_of(config.model.device).type,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": config.run.threads or torch.get_num_threads(),
    }


def saved(settings: Any) -> Any:
    """Settings as JSON can hold them: infinities as the strings "inf" and "-inf"."""
    if isinstance(settings, dict):
        return {key: saved(value) for key, value in settings.items()}
    return str(settings) if settings in (float("inf"), float("-inf")) else settings


def restored(settings: Any) -> Any:
    """What `saved` was given; the strings are no setting's value but a number's."""
    if isinstance(settings, dict):
        return {key: restored(value) for key, value in settings.items()}
    return float(settings) if settings in ("inf", "-inf") else settings
