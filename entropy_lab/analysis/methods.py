"""Methods over seeds: the tables method_curves and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.align import METRICS, Aligned
from entropy_lab.analysis.arms import baseline
from entropy_lab.analysis.curves import EDGE
from entropy_lab.analysis.seeds import (
    Indices,
    improvement_interval,
    iqm_over_seeds,
    mean_over_seeds,
    probability_of_improvement,
)
from entropy_lab.analysis.tables import frame

Array = NDArray[np.float64]
Draws = Mapping[str, Indices]

SUMMED = ("entropy", "reward")


def unit(seeds: int) -> str:
    """What an interval over this many seeds resamples."""
    return f"bootstrap over {seeds} seeds" if seeds > 1 else "1 seed: no interval"


def method_curves(runs: Aligned, draws: Draws) -> pd.DataFrame:
    """The mean over seeds of every metric's running mean, up to where the shortest run ends."""
    tables = []
    for method, rows in runs.members().items():
        here = runs.at <= runs.ends[rows].min()
        for metric in METRICS:
            values = runs.smooth[metric][rows][:, here]
            mean, low, high, seeds = mean_over_seeds(values, draws[method])
            known = seeds > 0
            columns = {
                "method": method, "axis": runs.axis, "at": runs.at[here][known], "metric": metric,
                "mean": mean[known], "mean_lo": low[known], "mean_hi": high[known],
                "seeds": seeds[known],
            }  # fmt: skip
            tables.append(pd.DataFrame(columns))
    return frame("method_curves", pd.concat(tables, ignore_index=True))


def methods(runs: Aligned, draws: Draws, seeds: Sequence[int | None]) -> pd.DataFrame:
    """One row per method: last values, areas and the chance to beat the baseline's reward.

    Over the part of the axis that all runs reach. seeds: of the runs, None where unknown.
    """
    members = runs.members()
    first = baseline(list(members))
    ends = {name: _ends(last_values(runs, "reward", rows)) for name, rows in members.items()}
    table = []
    for method, rows in members.items():
        row: dict[str, Any] = {
            "method": method, "baseline": first, "seeds": len(rows),
            "which": ", ".join(str(seeds[i]) for i in rows if seeds[i] is not None),
            "axis": runs.axis, "first": runs.at[0], "last": runs.last, "unit": unit(len(rows)),
        }  # fmt: skip
        for metric in SUMMED:
            last = last_values(runs, metric, rows)
            areas = area(runs.at[runs.common], runs.raw[metric][rows][:, runs.common])
            row |= _banded(metric, iqm_over_seeds(last, draws[method]))
            row |= _banded(f"{metric}_area", iqm_over_seeds(areas[:, None], draws[method]))
        if method != first:
            p = probability_of_improvement(ends[method], ends[first])
            interval = improvement_interval(p, len(ends[method]), len(ends[first]))
            row |= _banded("improvement", (p, *interval))
        table.append(row)
    return frame("methods", table)


def last_values(runs: Aligned, metric: str, rows: list[int]) -> Array:
    """(n, K) the last five values of each run that lie in the common part; K < 5 in a short one."""
    known = [values[np.isfinite(values)] for values in runs.raw[metric][rows][:, runs.common]]
    count = min([EDGE, *(len(values) for values in known)])
    return np.stack([values[len(values) - count :] for values in known])


def _ends(last: Array) -> Array:
    return last.mean(axis=1) if last.size else np.empty(0)


def area(at: Array, values: Array) -> Array:
    """Area under each row of values (n, T) by trapezoids, over its length: (n,).

    NaN values are left out; a row with a single value has that value, one without has NaN.
    """
    out = np.full(len(values), np.nan)
    for i, row in enumerate(values):
        known = np.isfinite(row)
        x, y = at[known], row[known]
        if len(x) > 1:
            out[i] = float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))
        elif len(x):
            out[i] = y[0]
    return out


def _banded(name: str, values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), values, strict=True))
