"""Correlations from sums, ranks, exact tail quantiles, distinct counts and the bootstrap.

Everything here is numpy in, numpy out, and mergeable: a log larger than memory is reduced step
by step to sums per (step, prompt group), and all intervals come from those sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Last axis of every array of pair sums; w = 1 / inclusion probability, x predicted, y measured.
PAIR_SUMS = ("w", "wx", "wy", "wxx", "wyy", "wxy")
# Below this share of the raw second moment, a variance is rounding and counts as zero.
_ZERO_VARIANCE = 1e-12


def pearson(sums: Array) -> Array:
    """Weighted Pearson correlation; `sums` (..., 6) as PAIR_SUMS; NaN without variance."""
    w, wx, wy, wxx, wyy, wxy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        vx, vy = wxx - wx * wx / w, wyy - wy * wy / w
        value = (wxy - wx * wy / w) / np.sqrt(vx * vy)
    flat = ~(vx > _ZERO_VARIANCE * wxx) | ~(vy > _ZERO_VARIANCE * wyy)
    return np.where(flat, np.nan, np.clip(value, -1.0, 1.0))


def slope_through_origin(sums: Array) -> Array:
    """The factor that best turns predictions into dH: sum(w x y) / sum(w x x); NaN at x = 0."""
    return ratio(sums[..., 5], sums[..., 3])


def mean_squared_error(sums: Array) -> Array:
    """Weighted mean of (y - x)^2, in the square of their unit; NaN without rows."""
    w, wxx, wyy, wxy = (sums[..., i] for i in (0, 3, 4, 5))
    return ratio(np.maximum(wyy - 2 * wxy + wxx, 0.0), w)


def ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where below is not above 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def centred(sums: Array) -> Array:
    """Pair sums of deviations from each cell's own means; sum them over groups to pool them."""
    w, wx, wy, wxx, wyy, wxy = np.moveaxis(sums, -1, 0)
    safe = np.where(w > 0, w, 1.0)
    zero = np.zeros_like(w)
    parts = [w, zero, zero, wxx - wx * wx / safe, wyy - wy * wy / safe, wxy - wx * wy / safe]
    return np.stack(parts, axis=-1)


def without(whole: Array, part: Array) -> Array:
    """Pair sums of the rows that are in `whole` and not in `part`."""
    rest = whole - part
    # Where part holds all of a second moment, the difference is rounding, not a variance.
    squares = rest[..., 3:5]
    squares[squares <= _ZERO_VARIANCE * whole[..., 3:5]] = 0.0
    return rest


def stacked(parts: list[Array]) -> tuple[Array, NDArray[np.int64]]:
    """Per-step sums (groups, ...) to (S, G, ...), empty groups zero, and the groups (S,)."""
    groups = np.array([len(part) for part in parts], dtype=np.int64)
    out = np.zeros((len(parts), int(groups.max(initial=1)), *parts[0].shape[1:]))
    for row, part in enumerate(parts):
        out[row, : len(part)] = part
    return out, groups


def ranks(values: NDArray[np.floating]) -> Array:
    """Ranks 1..n of a vector; equal values share the mean of their ranks."""
    order = np.argsort(values)
    ordered = values[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    size = np.diff(np.append(first, len(ordered)))
    out = np.empty(len(ordered))
    out[order] = np.repeat(first + (size + 1) / 2, size)
    return out


def spearman(columns: list[NDArray[np.floating]], target: NDArray[np.floating]) -> Array:
    """Spearman correlation of each column with `target` (n,), rows unweighted; NaN if constant."""
    ranked = _deviations(target)
    return np.array([_correlation(_deviations(c), ranked) for c in columns])


def _deviations(values: NDArray[np.floating]) -> Array:
    if len(values) == 0:
        return np.zeros(0)
    out = ranks(values)
    out -= (len(values) + 1) / 2
    return out


def _correlation(a: Array, b: Array) -> float:
    # Not a @ b: BLAS would set threads of its own to it, in each of ours.
    ab, aa, bb = (float(np.einsum("i,i", x, y)) for x, y in ((a, b), (a, a), (b, b)))
    return ab / float(np.sqrt(aa * bb)) if aa * bb > 0 else float("nan")


def top_rows(values: NDArray[np.floating], share: float) -> NDArray[np.bool_]:
    """The `share` of the rows with the largest |value|, at least one; ties go to earlier rows."""
    size = np.abs(values)
    count = max(1, int(share * len(size)))
    least = np.partition(size, -count)[-count]
    out = size > least
    out[np.flatnonzero(size == least)[: count - np.count_nonzero(out)]] = True
    return out


def one_of_each(stride: int, rows: int, seen: int, seed: int) -> NDArray[np.int64]:
    """Indices of one random row of every `stride` rows of a stream, in the next `rows` of it.

    seen: rows before. Not always the same place, so that no period of the rows (responses of one
    length) shows; all of them where stride is 1.
    """
    starts = np.arange(-seen % stride, rows, stride)
    if stride == 1:
        return starts
    at = starts + np.random.default_rng(seed).integers(0, stride, len(starts))
    return at[at < rows]


def quantile_edges(values: NDArray[np.float32], at: Sequence[float]) -> NDArray[np.float32]:
    """Inner edges (k,) of bins of values (n,) by their quantiles; a bin holds its lower edge.

    A value that fills more than a bin has one of its own, so k may differ from len(at).
    """
    if len(values) == 0:
        return np.empty(0, np.float32)
    edges = np.quantile(values, at).astype(np.float32)
    filled = edges[1:][edges[1:] == edges[:-1]]
    above = np.nextafter(filled, np.float32(np.inf))
    return np.unique(np.concatenate([edges, above]))


def bins_of(values: NDArray, edges: Sequence[float] | NDArray) -> NDArray[np.uint8]:
    """How many of the inner edges are <= each value (n,), which is its bin; 0 for NaN."""
    out = np.zeros(len(values), np.uint8)
    for edge in edges:  # for a score of edges ten times faster than searching for each value
        out += values >= edge
    return out


class TailQuantile:
    """Exact upper quantile of a stream that holds at most `rows` values, in (1 - q) rows memory."""

    def __init__(self, q: float, rows: int) -> None:
        self.q = q
        self._keep = int(np.ceil((1 - q) * rows)) + 2
        self._count = 0
        self._floor = -np.inf
        self._top = np.empty(0)

    def add(self, values: NDArray[np.floating]) -> None:
        """Take in one block of the stream, in any order."""
        self._count += len(values)
        self._top = np.concatenate([self._top, values[values >= self._floor]])
        if len(self._top) > 2 * self._keep:
            self._top = np.partition(self._top, -self._keep)[-self._keep :]
            self._floor = self._top[0]

    def value(self) -> float:
        """The quantile with linear interpolation, as numpy.quantile gives it; NaN when empty."""
        if not self._count:
            return float("nan")
        position = self.q * (self._count - 1)
        below = int(np.floor(position))
        top = np.sort(self._top)
        low = top[below - self._count]
        high = top[min(below + 1, self._count - 1) - self._count]
        return float(low + (high - low) * (position - below))


@dataclass
class DistinctCount:
    """How many different 64-bit hashes a stream holds: exact up to `limit`, then sampled.

    Past the limit only hashes with `level` low zero bits are kept and the count is scaled up by
    2^level (relative error about 1/sqrt(limit)); the answer does not depend on the order.
    """

    limit: int = 2**22
    level: int = 0
    _blocks: list[NDArray[np.uint64]] = field(default_factory=list)
    _held: int = 0

    def add(self, hashes: NDArray[np.int64]) -> None:
        """Take in one block of the stream."""
        block = hashes.view(np.uint64)
        if self.level:
            block = self._sampled(block)
        block = _distinct(block)
        self._blocks.append(block)
        self._held += len(block)
        if self._held > 2 * self.limit:
            self._merge()

    def value(self) -> int:
        """The count so far."""
        return len(self._merge()) << self.level

    def _sampled(self, block: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return block[block & np.uint64((1 << self.level) - 1) == 0]

    def _merge(self) -> NDArray[np.uint64]:
        if len(self._blocks) == 1:
            return self._blocks[0]
        merged = _distinct(np.concatenate([np.empty(0, np.uint64), *self._blocks]))
        while len(merged) > self.limit:
            self.level += 1
            merged = self._sampled(merged)
        self._blocks, self._held = [merged], len(merged)
        return merged


def _distinct(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # numpy.unique hashes; sorting is three times faster on millions of hashes.
    ordered = np.sort(values)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(ordered)]]
