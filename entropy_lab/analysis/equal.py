"""Entropy at equal reward and reward at equal entropy: the table equal_levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.align import Aligned
from entropy_lab.analysis.arms import baseline
from entropy_lab.analysis.seeds import Indices, mean_over_seeds
from entropy_lab.analysis.tables import frame

Array = NDArray[np.float64]

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way that the baseline's mean curve goes
PAIRS = (("reward", "entropy"), ("entropy", "reward"))


def passed(target: float, curve: Array, other: Array, at: Array) -> tuple[float, float]:
    """(`other`, `at`) where `curve` (T,) first equals `target`, whichever way it goes.

    Linear between neighbouring points; NaN where the curve never gets there.
    """
    known = np.isfinite(curve) & np.isfinite(other)
    x, y, t = curve[known] - target, other[known], at[known]
    if len(x) and x[0] == 0:
        return float(y[0]), float(t[0])
    crossings = np.flatnonzero((x[:-1] != 0) & (x[:-1] * x[1:] <= 0))
    if len(crossings) == 0:
        return float("nan"), float("nan")
    i = crossings[0]
    way = x[i] / (x[i] - x[i + 1])
    return float(y[i] + way * (y[i + 1] - y[i])), float(t[i] + way * (t[i + 1] - t[i]))


def targets(runs: Aligned, metric: str, rows: list[int]) -> dict[float, float]:
    """Share of the way -> the value there, from the first to the last of the mean curve of rows."""
    curve = runs.smooth[metric][rows][:, runs.common].mean(axis=0)
    curve = curve[np.isfinite(curve)]
    if len(curve) == 0:
        return {}
    # In this form a share of 1 gives the last value to the bit, which a single run reaches.
    return {share: float((1 - share) * curve[0] + share * curve[-1]) for share in SHARES}


def equal_levels(runs: Aligned, draws: Mapping[str, Indices]) -> pd.DataFrame:
    """What every run and method has where reward, or entropy, is that of the baseline.

    Along running means, over the part of the axis that all runs reach. A run that never passes a
    target has NaN and is left out of its method's mean; `reached` counts the others.
    """
    members = runs.members()
    first = baseline(list(members))
    at = runs.at[runs.common]
    rows: list[dict[str, Any]] = []
    for matched, other in PAIRS:
        if not np.isfinite(runs.raw[other]).any():
            continue
        for share, target in targets(runs, matched, members[first]).items():
            same = {"matched": matched, "share": share, "target": target}
            found = np.array(
                [
                    passed(target, curve[runs.common], value[runs.common], at)
                    for curve, value in zip(runs.smooth[matched], runs.smooth[other], strict=True)
                ]
            )
            at_level = [_of_run(runs, i, *found[i]) for i in range(len(found))]
            at_level += [
                _of_method(method, found[here], draws[method]) for method, here in members.items()
            ]
            base = next(r for r in at_level if r["level"] == "method" and r["method"] == first)
            rows += [{**r, **same, "baseline_value": base["value"]} for r in at_level]
    return frame("equal_levels", rows)


def _of_run(runs: Aligned, row: int, value: float, at: float) -> dict[str, Any]:
    return {
        "level": "run", "name": runs.runs[row], "method": runs.methods[row], "seeds": 1,
        "reached": int(np.isfinite(value)), "at": at, "value": value,
    }  # fmt: skip


def _of_method(method: str, found: Array, draws: Indices) -> dict[str, Any]:
    mean, low, high, reached = mean_over_seeds(found, draws)
    return {
        "level": "method", "name": method, "method": method, "seeds": len(found),
        "reached": int(reached[0]), "at": mean[1],
        "value": mean[0], "value_lo": low[0], "value_hi": high[0],
    }  # fmt: skip
