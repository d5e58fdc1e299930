"""The bootstrap: over steps where there are many, else over steps and prompt groups inside them.

Steps differ, and the tokens of one step share its update, so the step is the unit. A value of a
step already holds the noise of its own tokens: resampling groups inside the drawn steps as well
counts that noise twice (Davison and Hinkley 1997, section 3.8), and in simulation such intervals
cover 98 to 99 % where steps differ little. So from MANY_STEPS on only steps are drawn, and the
percentiles are those of Student's t, which makes up for the small number (Hesterberg 2015,
arXiv 1411.5279, the expanded percentile interval). With fewer steps there is nothing to draw a
spread from: then both levels are resampled; with eight steps that covers 98 % or more where steps
are alike and 90 to 95 % where they differ much.

Drawing groups anew for every drawn copy of a step is done from a pool: each step gets
`pool` resamples of its groups once, and every copy takes one of them at random. dH has heavy
tails: a resample that misses the few largest rows correlates better, so resampled correlations
are recentred on the value they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import ndtr, stdtrit

Array = NDArray[np.float64]

LEVEL = 0.95
MANY_STEPS = 10  # from here on only steps are resampled
_POOL_CELLS = 4_000_000  # steps x resamples x groups; bounds memory where groups are many


@dataclass(frozen=True)
class Draws:
    """Which resamples make up each replicate.

    counts (S, R, G): how often group g is in resample r of step s. chosen (B, S): flat indices
    s * R + r of the S draws of each replicate. steps_only: no group is resampled (R = 1).
    """

    counts: Array
    chosen: NDArray[np.int64]
    steps_only: bool

    def pool(self, sums: Array) -> Array:
        """Group sums (S, G, ...) to resampled step sums (S, R, ...)."""
        if self.steps_only:
            return sums.sum(axis=1, keepdims=True)
        steps, groups = sums.shape[:2]
        flat = np.matmul(self.counts, sums.reshape(steps, groups, -1))
        return flat.reshape(*self.counts.shape[:2], *sums.shape[2:])

    def totals(self, pool: Array) -> Array:
        """Sums of each replicate's draws: (S, R, ...) to (B, ...)."""
        flat = pool.reshape(pool.shape[0] * pool.shape[1], -1)
        replicates, draws = self.chosen.shape
        ends = np.arange(replicates + 1) * draws
        picks = csr_array(
            (np.ones(self.chosen.size), self.chosen.reshape(-1), ends),
            shape=(replicates, len(flat)),
        )
        return (picks @ flat).reshape(replicates, *pool.shape[2:])

    def medians(self, pool: Array, value: Array, least: float = -1.0, most: float = 1.0) -> Array:
        """Median over each replicate's draws, NaN left out: (S, R), own values (S,) to (B,)."""
        moved = recentred(pool, value[:, None], least, most)
        return nan_median(moved.reshape(-1)[self.chosen], axis=1)

    def means(self, pool: Array, value: Array) -> Array:
        """Mean over each replicate's draws: (S, R), own values (S,) to (B,)."""
        return recentred(pool, value[:, None]).reshape(-1)[self.chosen].mean(axis=1)

    def interval(self, replicates: Array, steps: int) -> tuple[float, float]:
        """The interval at LEVEL of a number that `steps` steps have a value of."""
        return interval(replicates, steps if self.steps_only else None)


def unit(steps: int, grouped: bool = True) -> str:
    """What the intervals over `steps` steps resample; grouped: prompt groups are known."""
    if steps >= MANY_STEPS:
        return "bootstrap over steps"
    return f"two-stage bootstrap: steps, then {'prompt groups' if grouped else 'responses'}"


def draw(groups: NDArray[np.int64], seed: int = 0, replicates: int = 1000) -> Draws:
    """Resampling plan for steps with `groups` (S,) prompt groups each; equal seeds agree."""
    rng = np.random.default_rng(seed)
    steps = len(groups)
    widest = int(groups.max(initial=1))
    drawn = rng.integers(0, steps, (replicates, steps))
    if steps >= MANY_STEPS:
        whole = (np.arange(widest) < groups[:, None]).astype(np.float64)
        return Draws(whole[:, None], drawn, True)
    resamples = int(np.clip(_POOL_CELLS // max(1, steps * widest), 20, 200))
    counts = np.zeros((steps, resamples, widest))
    for step, size in enumerate(groups):
        if size:
            counts[step, :, :size] = rng.multinomial(size, np.full(size, 1 / size), resamples)
    chosen = drawn * resamples + rng.integers(0, resamples, drawn.shape)
    return Draws(counts, chosen, False)


def recentred(
    resampled: Array, value: Array | float, least: float = -1.0, most: float = 1.0
) -> Array:
    """Resamples (..., R) moved so that their mean is `value` (..., 1), within least..most."""
    known = np.isfinite(resampled)
    total = np.where(known, resampled, 0.0).sum(axis=-1, keepdims=True)
    mean = total / np.maximum(known.sum(axis=-1, keepdims=True), 1)
    return np.clip(resampled + (value - mean), least, most)


def interval(replicates: Array, units: int | None = None) -> tuple[float, float]:
    """Percentile interval at LEVEL; NaN where no replicate has a value or all are equal.

    units: how many units were resampled; the percentiles are then at
    Phi(+-sqrt(units / (units - 1)) t), t the quantile of Student's t with units - 1 degrees.
    """
    finite = replicates[np.isfinite(replicates)]
    if len(finite) == 0 or np.ptp(finite) == 0:
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2
    if units is not None and units > 1:
        tail = float(ndtr((units / (units - 1)) ** 0.5 * stdtrit(units - 1, tail)))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def nan_median(values: Array, axis: int) -> Array:
    """Median without NaN entries; NaN (and no warning) where nothing is left."""
    if not np.isnan(values).any():
        return np.median(values, axis=axis) if values.shape[axis] else _no_median(values, axis)
    ordered = np.sort(values, axis=axis)  # NaN sorts last
    count = np.sum(~np.isnan(values), axis=axis, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0), axis)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[axis] - 1), axis)
    return np.squeeze((low + high) / 2, axis)


def _no_median(values: Array, axis: int) -> Array:
    shape = list(values.shape)
    del shape[axis]
    return np.full(shape, np.nan)
