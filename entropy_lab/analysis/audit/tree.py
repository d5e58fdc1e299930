"""A small regression tree: how much of a number's variance some columns explain."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LEAVES = 32
_SMALLEST = 3  # rows of a leaf: few tokens are clipped
_LEAST_GAIN = 2e-4  # of the total variance; below it a cut is as good as noise


@dataclass
class _Cut:
    column: int
    threshold: float
    left: int
    right: int


@dataclass
class Tree:
    """Leaves' means by cuts at thresholds, grown best first (Breiman et al. 1984)."""

    means: list[float]
    cuts: dict[int, _Cut]

    @classmethod
    def fit(cls, x: Array, y: Array) -> Tree:
        """x (n, k), y (n,), n >= 1."""
        tree = cls([float(y.mean())], {})
        least = _LEAST_GAIN * float(((y - y.mean()) ** 2).sum())
        heap = [_candidate(0, np.arange(len(y)), x, y)]
        while len(tree.means) - len(tree.cuts) < _LEAVES and heap:
            gain, node, column, threshold, rows = heapq.heappop(heap)
            if column < 0 or -gain <= least:
                continue
            below = x[rows, column] < threshold
            left, right = len(tree.means), len(tree.means) + 1
            tree.cuts[node] = _Cut(column, threshold, left, right)
            for child, part in ((left, rows[below]), (right, rows[~below])):
                tree.means.append(float(y[part].mean()))
                heapq.heappush(heap, _candidate(child, part, x, y))
        return tree

    def predict(self, x: Array) -> Array:
        """(n, k) to (n,)."""
        out = np.empty(len(x))
        stack = [(0, np.arange(len(x)))]
        while stack:
            node, rows = stack.pop()
            cut = self.cuts.get(node)
            if cut is None:
                out[rows] = self.means[node]
                continue
            below = x[rows, cut.column] < cut.threshold
            stack += [(cut.left, rows[below]), (cut.right, rows[~below])]
        return out


def _candidate(
    node: int, rows: NDArray[np.int64], x: Array, y: Array
) -> tuple[float, int, int, float, NDArray[np.int64]]:
    """(-gain, node, column, threshold, rows) of the best cut; column -1 where there is none."""
    best = (0.0, node, -1, 0.0, rows)
    values = y[rows] - y[rows].mean()
    n = len(rows)
    sizes = np.arange(1, n)
    for column in range(x.shape[1]):
        ordered = np.argsort(x[rows, column], kind="stable")
        at = x[rows, column][ordered]
        allowed = (at[1:] > at[:-1]) & (sizes >= _SMALLEST) & (n - sizes >= _SMALLEST)
        if not allowed.any():
            continue
        total = np.cumsum(values[ordered])[:-1]
        gain = np.where(allowed, total**2 * n / (sizes * (n - sizes)), 0.0)
        i = int(gain.argmax())
        if -gain[i] < best[0]:
            # The upper value itself: a midpoint may round down to the lower one.
            best = (-float(gain[i]), node, column, float(at[i + 1]), rows)
    return best
