"""Statistics over seeds: IQM, probability of improvement, the bootstrap of a few seeds.

The unit of a claim about a method is the run, and a method has few of them. So seeds are drawn
with replacement inside each method, methods apart (the stratified bootstrap of arXiv 2108.13264,
methods as strata; rows of the score matrix are seeds, columns steps). With n seeds the plain
percentile interval is too narrow: the spread of resampled means is sqrt((n - 1) / n) of what it
should be, and the normal quantile is not that of Student's t. In simulations it held the mean in
50, 74 and 85 % of the cases with 2, 3 and 5 normal seeds. Its ends are therefore moved away from
the estimate by sqrt(n / (n - 1)) t / z, which makes it the t interval where seeds are normal (93 to
97 %, and 86 to 92 % for exponential seeds); the range of the replicates does not bound it, as it
bounds an expanded percentile interval.

Where two methods hardly overlap, resampled probabilities of improvement are all 1: their interval
held the truth in 35 % of the cases with 5 seeds a method and P = 0.97. That interval is a score
interval instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from entropy_lab.analysis.bootstrap import LEVEL

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

REPLICATES = 2000
_TAIL = (1 - LEVEL) / 2
_CUT = 0.25  # of the values at either end that the IQM leaves out
_GRID = 20001  # points of the score interval: its ends are good to 5e-5


def iqm(values: Array, axis: int = -1) -> Array:
    """Interquartile mean: floor(n / 4) values dropped at either end, the mean of the rest.

    Along `axis`, which has no NaN; NaN where it is empty. arXiv 2108.13264, section 4.2.
    """
    ordered = np.sort(np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1), axis=-1)
    size = ordered.shape[-1]
    if size == 0:
        return np.full(ordered.shape[:-1], np.nan)
    cut = int(_CUT * size)
    return ordered[..., cut : size - cut].mean(axis=-1)


def probability_of_improvement(x: Array, y: Array) -> float:
    """P(X > Y) + P(X = Y) / 2 for a seed of each: x (n,), y (m,); NaN where one is empty.

    #{x_i > y_j} + #{x_i = y_j} / 2, over n m: Mann and Whitney's statistic. arXiv 2108.13264.
    """
    if len(x) == 0 or len(y) == 0:
        return float("nan")
    return float(((x[:, None] > y) + 0.5 * (x[:, None] == y)).mean())


def improvement_interval(p: float, n: int, m: int) -> tuple[float, float]:
    """Score interval at LEVEL of a probability of improvement p of n against m seeds.

    All q with |p - q| <= z sqrt(V(q)) + 1 / (2 n m), where
    V(q) = q (1 - q) [1 + N (1 - q) / (2 - q) + N q / (1 + q)] / (n m), N = (n + m) / 2 - 1:
    the variance of Hanley and McNeil (1982) at q, with N for n - 1 and m - 1 (Newcombe 2006,
    method 5). The continuity correction keeps it in step with Mann and Whitney's exact test: three
    seeds that all beat three others are no proof (P = 1, exact p = 0.1), four are. NaN below two
    seeds on either side.
    """
    if min(n, m) < 2 or not np.isfinite(p):
        return float("nan"), float("nan")
    q = np.linspace(0, 1, _GRID)
    more = (n + m) / 2 - 1
    variance = q * (1 - q) * (1 + more * (1 - q) / (2 - q) + more * q / (1 + q)) / (n * m)
    reach = ndtri(1 - _TAIL) * np.sqrt(variance) + 1 / (2 * n * m)
    inside = q[np.abs(p - q) <= reach + 1e-9]
    return float(inside[0]), float(inside[-1])


def stratified(
    sizes: Mapping[str, int], seed: int = 0, replicates: int = REPLICATES
) -> dict[str, Indices]:
    """Which seeds make up each replicate of each method: (replicates, size) indices.

    Methods are drawn apart from one another; a method's draws depend on `seed`, on its place and
    on its size alone.
    """
    streams = np.random.SeedSequence(seed).spawn(len(sizes))
    return {
        name: np.random.default_rng(stream).integers(0, size, (replicates, size))
        for stream, (name, size) in zip(streams, sizes.items(), strict=True)
    }


def stretched(
    replicates: Array, value: Array | np.float64 | float, seeds: Indices | int
) -> tuple[Array, Array]:
    """Interval at LEVEL of `value` (...) from its replicates (B, ...), `seeds` (...) drawn.

    value + k (percentile - value) for the percentiles of either tail, with
    k = sqrt(n / (n - 1)) t / z, t of n - 1 degrees of freedom. NaN below two seeds.
    """
    n = np.asarray(seeds, dtype=np.float64)
    some = np.maximum(n, 2)
    factor = np.sqrt(some / (some - 1)) * stdtrit(some - 1, _TAIL) / ndtri(_TAIL)
    factor = np.where(n >= 2, factor, np.nan)
    low, high = np.quantile(replicates, [_TAIL, 1 - _TAIL], axis=0)
    low, high = value + factor * (low - value), value + factor * (high - value)
    return np.asarray(low), np.asarray(high)


def mean_over_seeds(values: Array, draws: Indices) -> tuple[Array, Array, Array, Indices]:
    """(mean, low, high, seeds with a value) of values (n, T) at every column; draws (B, n).

    NaN in `values` is a seed without a value there: it is left out of the mean and of n. Columns
    without any have NaN.
    """
    known = np.isfinite(values)
    count = known.sum(axis=0)
    filled = np.where(known, values, 0.0)
    times = np.stack([(draws == i).sum(axis=1) for i in range(len(values))], axis=1)  # (B, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=0) / count
        drawn = times @ known  # (B, T)
        replicates = np.where(drawn > 0, times @ filled / drawn, mean)
    low, high = stretched(replicates, mean, count)
    return mean, low, high, count


def iqm_over_seeds(values: Array, draws: Indices) -> tuple[float, float, float]:
    """(IQM, low, high) of all values (n, K) of n seeds, whole rows drawn by draws (B, n).

    NaN where there is no value, or one of them is NaN.
    """
    if values.size == 0 or not np.isfinite(values).all():
        return float("nan"), float("nan"), float("nan")
    value = float(iqm(values.reshape(-1)))
    replicates = iqm(values[draws].reshape(len(draws), -1))
    low, high = stretched(replicates, value, len(values))
    return value, float(low), float(high)
