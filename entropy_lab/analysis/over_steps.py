"""Intervals of numbers that have one value a step: the step is drawn again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.bootstrap import interval

Array = NDArray[np.float64]

UNIT = "bootstrap over steps"
SINGLE = "1 step: no interval"


def unit(steps: int) -> str:
    """What `over_steps` of so many steps resamples."""
    return UNIT if steps > 1 else SINGLE


def over_steps(
    values: Array, statistic: Callable[[Array], Array], seed: int = 0, replicates: int = 1000
) -> tuple[Array, Array, Array]:
    """(value, low, high) of statistic(values): (S, ...) -> (...), steps along axis 0.

    `statistic` takes the steps along axis -2 of (..., S, C) and returns (..., C). NaN intervals
    below two steps, and where every replicate is equal.
    """
    data = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    value = statistic(data)
    nothing = np.full(value.shape, np.nan)
    if len(data) < 2:
        return value, nothing, nothing.copy()
    picks = np.random.default_rng(seed).integers(0, len(data), (replicates, len(data)))
    drawn = statistic(data[picks])  # (B, C)
    ends = [interval(drawn[:, c], len(data)) for c in range(drawn.shape[1])]
    low, high = np.array(ends).reshape(-1, 2).T
    return value, low, high


def mean(data: Array) -> Array:
    """Mean over steps; the statistic of most tables."""
    return data.mean(axis=-2)


def median(data: Array) -> Array:
    """Median over steps."""
    return np.median(data, axis=-2)
