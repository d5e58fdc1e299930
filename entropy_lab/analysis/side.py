"""What is kept of the training rows, or of the held-out rows, of all steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.bootstrap import MANY_STEPS
from entropy_lab.analysis.statistics import PAIR_SUMS, DistinctCount
from entropy_lab.analysis.tables import FIRST_STEP

Array = NDArray[np.float64]

DENSITY_BINS = 61  # along each axis; odd, so that zero has its own bin
# From here on no interval resamples groups, not even that of a third of the steps.
MERGED_STEPS = 3 * MANY_STEPS + FIRST_STEP


@dataclass(frozen=True)
class StepSums:
    """The sums of one step that stay apart from those of other steps.

    cells (groups, strata, columns): BASE, then FORM of every predictor (NaN where it is absent).
    within (groups, correlated strata, predictors, 6): PAIR_SUMS of deviations from group means.
    trimmed, trimmed_within (correlated strata, predictors, 6): PAIR_SUMS of the rows up to the
    step's TRIM quantile of |dH|, and the same of deviations from group means. srcc (correlated
    strata, predictors).
    """

    step: int
    cells: Array
    within: Array
    trimmed: Array
    trimmed_within: Array
    srcc: Array


@dataclass(frozen=True)
class LateSums:
    """The sums of one step from `first` on.

    tops (groups, predictors + 2): w |dH| in the TOP share of the rows by |prediction|, in that by
    |dH|, in all rows. cuts: kind of CUTS -> columns of each bin (groups, bins, columns).
    calibration: predictor -> n, w, wx, wy of each bin of its edges (groups, bins, 4). kept, code:
    (dH, predictions...) and cell of a sample of rows. The rest adds up over steps: tail
    (correlated strata, predictors, 6), PAIR_SUMS beyond the run's TRIM quantile of |dH|; density:
    predictor -> rows per bin.
    """

    tops: Array
    cuts: dict[str, Array]
    calibration: dict[str, Array]
    kept: NDArray[np.float32]
    code: NDArray[np.int64]
    tail: Array
    density: dict[str, NDArray[np.int64]]


@dataclass
class Side:
    """How one side is summed, and its sums: lists of steps as StepSums and LateSums have them.

    strata, the first `correlated` of which have correlations; member (CODES, strata): whether rows
    of a cell lie in it. limit: the run's TRIM quantile of |dH|. kinds: the kinds of CUTS; edges:
    predictor -> inner edges of its calibration bins; ranges: predictor -> half the width of its
    density. Training rows alone have these three. states: distinct ones from `first` on.
    """

    strata: tuple[str, ...]
    member: NDArray[np.bool_]
    correlated: int
    predictors: list[str]
    limit: float
    kinds: tuple[str, ...] = ()
    edges: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    ranges: dict[str, float] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    cells: list[Array] = field(default_factory=list)
    within: list[Array] = field(default_factory=list)
    trimmed: list[Array] = field(default_factory=list)
    trimmed_within: list[Array] = field(default_factory=list)
    srcc: list[Array] = field(default_factory=list)
    tops: list[Array] = field(default_factory=list)
    cuts: dict[str, list[Array]] = field(default_factory=dict)
    calibration: dict[str, list[Array]] = field(default_factory=dict)
    kept: list[NDArray[np.float32]] = field(default_factory=list)
    kept_code: list[NDArray[np.int64]] = field(default_factory=list)
    states: DistinctCount = field(default_factory=DistinctCount)
    tail: Array = field(init=False)
    density: dict[str, NDArray[np.int64]] = field(init=False)

    def __post_init__(self) -> None:
        self.tail = np.zeros((self.correlated, len(self.predictors), len(PAIR_SUMS)))
        self.density = {name: np.zeros(DENSITY_BINS**2, np.int64) for name in self.ranges}

    def add(self, sums: StepSums, late: LateSums | None) -> None:
        """Take in one step; steps come in order."""
        self.steps.append(sums.step)
        for name in ("cells", "within", "trimmed", "trimmed_within", "srcc"):
            getattr(self, name).append(getattr(sums, name))
        if late is not None:
            self.tops.append(late.tops)
            for kind, part in late.cuts.items():
                self.cuts.setdefault(kind, []).append(part)
            for name, part in late.calibration.items():
                self.calibration.setdefault(name, []).append(part)
            self.kept.append(late.kept)
            self.kept_code.append(late.code)
            self.tail += late.tail
            for name, counts in late.density.items():
                self.density[name] += counts
        if len(self.steps) >= MERGED_STEPS:
            self._merge_groups()

    def _merge_groups(self) -> None:
        grouped = [self.cells, self.within, self.tops, *self.cuts.values()]
        for parts in (*grouped, *self.calibration.values()):
            for i in range(len(parts) - 1, -1, -1):
                if len(parts[i]) == 1:
                    break
                parts[i] = parts[i].sum(axis=0, keepdims=True)
