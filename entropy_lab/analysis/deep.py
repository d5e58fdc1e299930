"""The training rows of deep steps, where path forms and influence were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.rows import BASE, FORM, Columns, Groups, group_index, usable
from entropy_lab.analysis.scan import Scan
from entropy_lab.analysis.statistics import one_of_each
from entropy_lab.analysis.tables import HELD_OUT, PREDICTOR_PREFIX, TARGETS

Array = NDArray[np.float64]

_PATH_RUNGS = ("jvp_grad", "jvp")


@dataclass(frozen=True)
class DeepRows:
    """The usable training rows (n,) of one deep step.

    columns: name -> values, NaN where the log has none. group: 0..groups-1. weight: 1 / inclusion
    probability.
    """

    step: int
    columns: dict[str, Array]
    group: NDArray[np.int64]
    groups: int
    weight: Array

    def total(self, values: Array) -> Array:
        """Weighted sum of values (n,) in each prompt group: (groups,)."""
        sums = np.bincount(self.group, self.weight * values, self.groups)
        return sums.astype(np.float64, copy=False)

    def sample(self, most: int) -> NDArray[np.int64]:
        """Indices of at most `most` random rows; all of them where there are no more."""
        stride = max(1, -(-len(self.weight) // most))
        return one_of_each(stride, len(self.weight), 0, self.step)

    def only(self, rows: NDArray[np.int64]) -> DeepRows:
        """These rows alone, without columns, to sum values of theirs by the same groups."""
        return DeepRows(self.step, {}, self.group[rows], self.groups, self.weight[rows])

    def pair_sums(self, x: Array, y: Array) -> Array:
        """PAIR_SUMS of x (n,) and y (n,) in each prompt group: (groups, 6); NaN spreads."""
        parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
        return np.stack([self.total(part) for part in parts], axis=-1)


def deep_steps(found: Scan, steps: pd.DataFrame) -> dict[int, set[str]]:
    """Steps from `found.first` on with a path rung or an influence sum, and their predictors."""
    train = found.train
    known: set[int] = set()
    if "influence_sum" in steps:
        known = set(steps.loc[steps["influence_sum"].notna(), "step"].astype(int))
    out = {}
    for step, cells in zip(train.steps, train.cells, strict=True):
        sums = cells[:, 0, len(BASE) :: len(FORM)].sum(axis=0)
        forms = {p for p, x in zip(found.predictors, sums, strict=True) if np.isfinite(x)}
        if step >= found.first and (step in known or forms & set(_PATH_RUNGS)):
            out[step] = forms
    return out


def deep_columns(have: Sequence[str], forms: Sequence[str]) -> list[str]:
    """The token columns that the tables of deep steps read, as far as the log has them."""
    base = ("uid", "flags", "logp", "entropy", "m0", "m1", *TARGETS)
    return [c for c in (*base, *(PREDICTOR_PREFIX + form for form in forms)) if c in have]


def deep_rows(
    blocks: Iterable[tuple[int, Columns]], groups: Groups, probability: Callable[[int], float]
) -> Iterator[DeepRows]:
    """Usable training rows of each block, columns in float64."""
    for step, columns in blocks:
        keep = usable(columns) & ((columns["flags"] & HELD_OUT) == 0)
        group, count, weight = group_index(columns["uid"][keep], groups, probability(step))
        values = {
            name: np.asarray(v[keep], dtype=np.float64)
            for name, v in columns.items()
            if name not in ("uid", "flags")
        }
        yield DeepRows(step, values, group, count, weight)
