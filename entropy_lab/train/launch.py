"""Start or continue a run: settings in, run directory out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import make_method
from entropy_lab.probe.cost import reported
from entropy_lab.probe.world import ALONE, Alone
from entropy_lab.record import Run, create_run, open_run, rewind, run_lock, set_status
from entropy_lab.record.manifest import update_info
from entropy_lab.record.merge import merge_parts
from entropy_lab.train.best import score_name
from entropy_lab.train.checkpoint import best_checkpoint, cut_checkpoints
from entropy_lab.train.config import Config, config_from_dict, load_config, override
from entropy_lab.train.cost import announced, estimated_cost, measured_cost
from entropy_lab.train.dry_run import describe
from entropy_lab.train.parallel import joined
from entropy_lab.train.parallel.start import (
    check_several,
    rank_and_size,
    ranks_of_run,
    said_once,
)
from entropy_lab.train.pretrained import device_of
from entropy_lab.train.resume_point import continuation, newest_checkpoint, step_of
from entropy_lab.train.schedule import scheduled_steps

# Sections that the settings of earlier versions lack.
_ADDED = {"eval", "tracker", "vllm", "reward"}
# What may differ when a run goes on: how long, how often it is saved, who else is told, and the
# limits that an error asks to change.
_RESUMABLE = (
    "train.rollouts",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.parallel",
    "train.hang_timeout",
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
    Under torchrun every process calls this, with the same arguments. Raises ConfigError for wrong
    settings, RunError where the directory is in the way or cannot be written, KeyboardInterrupt
    after Ctrl-C (the run is saved).
    """
    with said_once():
        found = _resumed(path, overrides, out) if resume else (load_config(path, overrides), out)
        config = found[0]
        if rank_and_size()[1] > 1:
            check_several(config, rank_and_size()[1])
    if dry_run:
        if rank_and_size()[0] == 0:
            print(describe(config, out or _default_out(config)))
        if rank_and_size()[0] == 0 and resume and out is not None:
            run = open_run(out)
            print(continuation(run, newest_checkpoint(run, config), config))
        return out or _default_out(config)
    return _resume(config, Path(out or "")) if resume else _begin(config, out)


def _begin(config: Config, out: Path | None) -> Path:
    place = _Place()
    with joined(config, place.mark) as world:

        def make() -> Path:
            return create_run(
                out or _default_out(config),
                saved(config.to_dict()),
                seeds={"run": config.run.seed, "model": config.model.seed},
                extra=_facts(config) | ranks_of_run({}, 0, world.size),
            )

        run_dir = place.path = world.told(make() if world.rank == 0 else None)
        assert run_dir is not None
        with run_lock(run_dir) if world.rank == 0 else nullcontext():
            finished = _train(config, run_dir, None, world)
    return _said(finished, run_dir)


def _resumed(path: Path | None, overrides: list[str], out: Path | None) -> tuple[Config, Path]:
    """The settings of the run to be continued."""
    if out is None:
        raise ConfigError("--resume needs --out DIR, the run directory to continue")
    if path is not None:
        raise ConfigError(f"--resume takes its settings from {out / 'run.json'}: leave {path} out")
    return _saved_config(open_run(out), overrides), out


def _resume(config: Config, out: Path) -> Path:
    place = _Place(out)
    with joined(config, place.mark) as world:
        with run_lock(out) if world.rank == 0 else nullcontext():
            found = world.told(_rewound(config, out, world.size) if world.rank == 0 else None)
            assert found is not None
            if not config.run.threads:
                # Sums are split over threads: another number would change the last bits.
                threads = open_run(out).info.get("threads")
                torch.set_num_threads(int(threads or torch.get_num_threads()))
            finished = _train(config, out, found[0], world)
    return _said(finished, out)


def _rewound(config: Config, out: Path, ranks: int) -> tuple[Path | None]:
    """Cut the run back to its checkpoint, which is returned; the run is running then."""
    run = open_run(out)
    checkpoint = newest_checkpoint(run, config)
    step = step_of(checkpoint) if checkpoint else 0
    print(continuation(run, checkpoint, config))
    rewind(out, step - 1)
    merge_parts(out)
    cut_checkpoints(out, step)
    facts = ranks_of_run(run.info, step, ranks)
    set_status(out, "running", config=saved(config.to_dict()), **facts)
    return (checkpoint,)


@dataclass
class _Place:
    """Where the run is, once it is known; what the watch of several ranks does at their end."""

    path: Path | None = None

    def mark(self, status: str, first: bool) -> None:
        if first and self.path is not None:
            _mark(self.path, status)


def _said(finished: bool, run_dir: Path) -> Path:
    if not finished:
        if rank_and_size()[0] == 0:
            again = f"entropy-lab train --resume --out {run_dir}"
            print(f"stopped and saved; continue with: {again}")
        raise KeyboardInterrupt
    return run_dir


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


def _train(
    config: Config, run_dir: Path, checkpoint: Path | None, world: Alone = ALONE
) -> bool:
    """Whether it has run to its end; one rank of several speaks and marks."""
    from entropy_lab.train.loop import train
    from entropy_lab.train.progress import Progress

    speaks = world.rank == 0
    if speaks and (line := announced(config)):
        print(line)
    try:
        with Progress(run_dir, config, None if speaks else Console(quiet=True)) as progress:
            finished = train(config, run_dir, checkpoint, progress, world)
    except BaseException as error:
        world.abandon(error)
        if speaks:
            _give_up(error, run_dir, checkpoint)
        raise
    if not speaks:
        return finished
    _tell_cost(config, run_dir)
    if config.train.keep_best and (best := best_checkpoint(run_dir)):
        print(f"best checkpoint by {score_name(config)}: {best[0]} ({best[1]:.4g})")
    return finished


def _give_up(error: BaseException, run_dir: Path, checkpoint: Path | None) -> None:
    """What an error leaves of the directory."""
    if isinstance(error, ConfigError):
        # Nothing was trained: the directory stays free for the corrected settings.
        if checkpoint is None and open_run(run_dir).last_step is None:
            for name in ("run.json", "metrics.jsonl", "vocab.json"):
                (run_dir / name).unlink(missing_ok=True)
            return
    if isinstance(error, Exception | KeyboardInterrupt):
        _mark(run_dir, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")


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
