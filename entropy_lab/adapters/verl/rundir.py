"""Opening one run directory from all ranks of an engine."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from entropy_lab.adapters.verl import ranks
from entropy_lab.adapters.verl.engine import device_of, plain_config, temperature_of
from entropy_lab.adapters.verl.guard import Guard
from entropy_lab.adapters.verl.settings import Settings
from entropy_lab.record import RunWriter, create_run
from entropy_lab.record.schema import profile_predictors

logger = logging.getLogger("entropy_lab.adapters.verl")


def open_run_dir(
    engine: Any, data: Any, settings: Settings, config: Any
) -> tuple[Guard, RunWriter | None, bool]:
    """The guard and the writer of this rank (None without output), and whether to give up.

    Every rank calls it. Where run_dir exists, run_dir-2, -3, ... is taken: a training run that
    verl resumes gets a directory of its own. One rank that cannot write below it ends the
    measuring on all of them, with the reason in its log.
    """
    rank, device = int(engine.get_data_parallel_rank()), device_of(engine)
    source, number = bool(engine.is_mp_src_rank_with_outputs()), 1
    if rank == 0 and source:
        while _path(settings.run_dir, number).exists():
            number += 1
    (number,) = ranks.largest([number], device)
    path = _path(settings.run_dir, number)
    guard, writers, failed = Guard(path, rank, settings.strict), [], False
    if rank == 0 and source:
        failed = bool(guard.attempt("start", 0, lambda: _create(path, engine, settings, config)))
    ranks.largest([0], device)  # from here on run.json is there, or never will be
    if source and not failed:
        action = lambda: writers.append(_writer(path, rank, settings, data))  # noqa: E731
        failed = bool(guard.attempt("start", 0, action))
    (anyone,) = ranks.largest([int(failed)], device)
    if anyone:
        logger.error(
            "entropy-lab: rank %d: %s cannot be written %s, so NOTHING is recorded; training goes "
            "on. On several nodes run_dir has to lie on a file system that all of them see",
            rank, path, "here" if failed else "on another rank",
        )  # fmt: skip
    else:
        logger.warning("entropy-lab: rank %d records to %s: %s", rank, path, settings)
    return guard, writers[0] if writers else None, bool(anyone)


def loss_mode(config: Any) -> str:
    """The name of verl's policy loss, "unknown" where the loss function does not say."""
    policy = config.get("policy_loss", None) if config is not None else None
    return str(policy.get("loss_mode", "vanilla")) if policy is not None else "unknown"


def _path(run_dir: str, number: int) -> Path:
    return Path(run_dir if number == 1 else f"{run_dir.rstrip('/')}-{number}")


def _create(path: Path, engine: Any, settings: Settings, config: Any) -> None:
    named = {
        "probe": {**asdict(settings), "method": dict(settings.method or {})},
        "method": {"name": f"verl:{loss_mode(config)}"},
        "verl": plain_config(config),
        "engine": type(engine).__name__,
        "world_size": ranks.world_size(),
    }
    create_run(path, named, seeds={"seed": settings.seed}, extra={"adapter": "verl"})


def _writer(path: Path, rank: int, settings: Settings, data: Any) -> RunWriter:
    return RunWriter(
        path,
        meta={
            "temperature": str(temperature_of(data)),
            "sampling": f"every={settings.every} fraction={settings.fraction} seed={settings.seed}",
            "adapter": "verl",
        },
        profile=settings.profile,
        predictors=profile_predictors(settings.profile),
        rank=rank,
    )
