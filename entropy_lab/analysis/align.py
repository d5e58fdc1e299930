"""Runs of different lengths on one axis, so that equal columns are equally far into training.

Runs are aligned on the optimizer step. Where they take different numbers of steps on a rollout,
equal steps are not equal amounts of data: then they are aligned on the rollout, with the mean over
its steps. A curve of a method ends where its shortest run does, because its mean would jump there;
a number that compares methods uses only what all runs have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.compare import METRICS as COMPARED
from entropy_lab.analysis.curves import running_mean

Array = NDArray[np.float64]

METRICS = COMPARED | {name: name for name in ("entropy_fixed", "response_length", "touched_share")}


@dataclass(frozen=True)
class Aligned:
    """All runs on one axis; NaN where a run has no value.

    at (T,): the values of `axis` that any run has. methods: label of each of the R runs. raw,
    smooth: metric -> (R, T), as logged and its running mean. ends (R,): last value of each run.
    """

    axis: str
    at: Array
    runs: list[str]
    methods: list[str]
    raw: dict[str, Array]
    smooth: dict[str, Array]
    ends: Array

    @property
    def last(self) -> float:
        """The last value of axis that every run reaches."""
        return float(self.ends.min())

    @property
    def common(self) -> NDArray[np.bool_]:
        """(T,) the part of the axis that all runs reach."""
        return self.at <= self.last

    def members(self) -> dict[str, list[int]]:
        """Rows of each method, methods and runs in the order given."""
        found: dict[str, list[int]] = {}
        for row, method in enumerate(self.methods):
            found.setdefault(method, []).append(row)
        return found


def align(curves: pd.DataFrame) -> Aligned:
    """The metrics of the table `curves` of several runs on one axis."""
    names = [str(name) for name in dict.fromkeys(curves["run"])]
    parts = [curves[curves["run"] == name] for name in names]
    axis = "step" if _equal_rollouts(parts) else "rollout"
    methods = [str(part["method"].iloc[0]) for part in parts]
    rows = [_on(part, axis) for part in parts]
    at = np.unique(np.concatenate([part.index.to_numpy(np.float64) for part in rows]))
    raw, smooth = {}, {}
    for metric, column in METRICS.items():
        raw[metric] = np.stack([part[column].reindex(at).to_numpy() for part in rows])
        smooth[metric] = np.stack(
            [running_mean(part[column]).reindex(at).to_numpy() for part in rows]
        )
    ends = np.array([float(part.index.max()) for part in rows])
    return Aligned(axis, at, names, methods, raw, smooth, ends)


def _equal_rollouts(parts: list[pd.DataFrame]) -> bool:
    """Whether all runs take equally many steps on a rollout; also where some log no rollout."""
    if any(part["rollout"].isna().all() for part in parts):
        return True
    # The last rollout of a stopped run may lack steps; the median is the rule.
    return len({float(part.groupby("rollout").size().median()) for part in parts}) == 1


def _on(part: pd.DataFrame, axis: str) -> pd.DataFrame:
    columns = list(METRICS.values())
    values = part[[axis, *columns]].astype(np.float64)
    return values.groupby(axis)[columns].mean()
