"""avg@k and pass@k of a benchmark from what was right, with intervals over its problems."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

_LEVEL = 0.95
_REPLICATES = 1000


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k responses is right, from n of which c are (arXiv 2107.03374).

    1 - C(n-c, k) / C(n, k), unbiased for independent responses. In whole numbers up to the one
    division, so exact to the last bit for any n. Raises ValueError unless 1 <= k <= n and
    0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, got n = {n}, c = {c}, k = {k}")
    every = comb(n, k)
    return (every - comb(n - c, k)) / every


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to `largest`."""
    return [2**i for i in range(largest.bit_length())]


def pass_rows(right: Sequence[int], samples: int, ks: Sequence[int]) -> list[dict[str, Any]]:
    """{n, k, avg_at_k, pass_at_k, their intervals and the standard error of pass_at_k} for each k.

    right: of each of the n problems, how many of its `samples` responses are right. avg_at_k is
    the share of right responses, of all samples whatever k; both are means over problems, and so
    are their intervals (`interval`); pass_at_k_se is the standard error of that mean, None for one
    problem.
    """
    average = np.array(right) / samples
    low, high = interval(average)
    shared = {"n": len(right), "avg_at_k": float(average.mean())}
    shared |= {"avg_at_k_lo": low, "avg_at_k_hi": high}
    rows = []
    for k in ks:
        values = np.array([pass_at_k(samples, c, k) for c in right])
        se = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        low, high = interval(values)
        row = {"k": k, "pass_at_k": float(values.mean()), "pass_at_k_se": se}
        rows.append(shared | row | {"pass_at_k_lo": low, "pass_at_k_hi": high})
    return rows


def interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float | None, float | None]:
    """Bootstrap interval at 95 % of the mean over problems, from `values` (n,), one a problem.

    The percentiles of the means of resampled problems, widened for a small number of them as
    Student's t is: at Phi(+-sqrt(n / (n - 1)) t), t its quantile with n - 1 degrees of freedom
    (arXiv 1411.5279, the expanded percentile interval). (None, None) where there is nothing to
    draw a spread from: one problem, or equal values.
    """
    n = len(values)
    if n < 2 or np.ptp(values) == 0:
        return None, None
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(_REPLICATES)])
    tail = float(ndtr((n / (n - 1)) ** 0.5 * stdtrit(n - 1, (1 - _LEVEL) / 2)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
