"""Sums per step and prompt group, from which every number of the audit and its interval come."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.bootstrap import Draws, draw, nan_median
from entropy_lab.analysis.statistics import stacked

Array = NDArray[np.float64]
Number = tuple[float, float, float]  # value, lower and upper end of its interval
NAN = float("nan")
NOTHING: Number = (NAN, NAN, NAN)


class Ledger:
    """Column sums (groups, K) of every step under a key; each key gets one entry a step."""

    def __init__(self) -> None:
        self._sums: dict[Hashable, list[Array]] = {}
        self._group: NDArray[np.int64] = np.empty(0, np.int64)
        self._weight: Array = np.empty(0)
        self.groups: list[int] = []
        self.rows = 0

    def begin(self, group: NDArray[np.int64], groups: int, weight: Array) -> None:
        """The next step: group (N,) in 0..groups-1 and weight (N,) of its rows."""
        self._group, self._weight = group, weight
        self.groups.append(groups)
        self.rows += len(group)

    def add(self, key: Hashable, *columns: Array) -> None:
        """Weighted sums of columns (N,) in each group."""
        sums = [np.bincount(self._group, self._weight * c, self.groups[-1]) for c in columns]
        self.put(key, np.stack(sums, axis=-1))

    def put(self, key: Hashable, sums: NDArray[Any]) -> None:
        """Sums (groups, ...) of the step."""
        self._sums.setdefault(key, []).append(sums.astype(np.float64, copy=False))

    def __contains__(self, key: Hashable) -> bool:
        return key in self._sums

    @property
    def steps(self) -> int:
        return len(self.groups)

    @cached_property
    def draws(self) -> Draws:
        """The resampling plan of all numbers; fixed once the last step is in."""
        return draw(np.array(self.groups, dtype=np.int64))

    def by_step(self, key: Hashable) -> Array:
        """(S, ...) sums of each step."""
        return stacked(self._sums[key])[0].sum(axis=1)

    def pooled(self, key: Hashable, of: Callable[[Array], Array]) -> Number:
        """of(sums over all steps); `of` maps (..., K) to (...)."""
        sums, _ = stacked(self._sums[key])
        value = float(of(sums.sum(axis=(0, 1))))
        return (value, *self._interval(of(self.draws.totals(self.draws.pool(sums)))))

    def mean(self, key: Hashable, of: Callable[[Array], Array]) -> Number:
        """Mean over steps of of(sums of a step)."""
        sums, _ = stacked(self._sums[key])
        value = float(of(sums.sum(axis=1)).mean())
        resampled = of(self.draws.pool(sums)).reshape(-1)[self.draws.chosen]  # (B, S)
        return (value, *self._interval(resampled.mean(axis=1)))

    def median(self, key: Hashable, of: Callable[[Array], Array]) -> tuple[Number, int]:
        """Median over steps of a correlation, and how many steps have one."""
        sums, _ = stacked(self._sums[key])
        value = of(sums.sum(axis=1))
        known = value[np.isfinite(value)]
        if not len(known):
            return NOTHING, 0
        replicates = self.draws.medians(of(self.draws.pool(sums)), value)
        ends = self.draws.interval(replicates, len(known))
        return (float(nan_median(value, 0)), *ends), len(known)

    def _interval(self, replicates: Array) -> tuple[float, float]:
        return self.draws.interval(replicates, self.steps)


def ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where below is not above 0."""
    above = np.asarray(above, dtype=np.float64)
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def named(name: str, number: Number) -> dict[str, float]:
    """A number as the three columns of a table."""
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), number, strict=True))
