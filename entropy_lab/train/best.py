"""Which checkpoint is the best: a number from the log of the run for each of them."""

from __future__ import annotations

import math
from pathlib import Path

from entropy_lab.record.evals import read_evals
from entropy_lab.record.metrics import last_metrics
from entropy_lab.train.config import Config

ROLLOUTS = 10  # that the running reward is averaged over


def checkpoint_score(config: Config, run_dir: Path, step: int) -> float | None:
    """The score by `train.keep_best` of the weights after `step` optimizer steps; higher is better.

    "reward": the mean over the steps of the last 10 rollouts. "avg_at_k": the share of right
    responses in the evaluation of these very weights, on `train.best_on` or averaged over the
    benchmarks. None without keep_best, or where there is no such number. A function of the log,
    so a resumed run finds the same.
    """
    by = config.train.keep_best
    if not by:
        return None
    return _reward(config, run_dir, step) if by == "reward" else _avg_at_k(config, run_dir, step)


def score_name(config: Config) -> str:
    """The score in words."""
    if config.train.keep_best == "reward":
        return f"mean reward of {ROLLOUTS} rollouts"
    return f"avg@k on {config.train.best_on or 'all benchmarks'}"


def _reward(config: Config, run_dir: Path, step: int) -> float | None:
    count = ROLLOUTS * config.train.minibatches
    lines = [m for m in last_metrics(run_dir, count) if step - count <= m["step"] < step]
    return _mean([m["reward"] for m in lines if m.get("reward") is not None])


def _avg_at_k(config: Config, run_dir: Path, step: int) -> float | None:
    table, only = read_evals(run_dir), config.train.best_on
    rows = table.to_pylist() if table is not None else []
    # An evaluation has a row for each k, all with the same average.
    found = {r["benchmark"]: r["avg_at_k"] for r in rows if r["step"] == step}
    return _mean([v for name, v in found.items() if only in ("", name)])


def _mean(values: list[float]) -> float | None:
    mean = math.fsum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None
