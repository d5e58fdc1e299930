"""Two passes over the token rows, one step at a time, to sums that everything else needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.bins import CUTS, QUANTILES
from entropy_lab.analysis.reduce import Side, keep_rows, reduce_step
from entropy_lab.analysis.rows import (
    BASE,
    CORRELATED,
    HELD_OUT_MEMBER,
    HELD_OUT_STRATA,
    MEMBER,
    STRATA,
    Columns,
    Groups,
    split,
    usable,
)
from entropy_lab.analysis.statistics import (
    PAIR_SUMS,
    DistinctCount,
    TailQuantile,
    quantile_edges,
)
from entropy_lab.analysis.tables import HELD_OUT, PREDICTOR_PREFIX, TRIM

Steps = Callable[[Sequence[str]], Iterable[tuple[int, Columns]]]

BINS = 61  # of the density, along each axis; odd, so that zero has its own bin
_W, _WU = (BASE.index(name) for name in ("w", "wu"))
_SAMPLE_ROWS = 2**20  # evenly spaced rows held for what needs an order of all rows


@dataclass
class Scan:
    """Everything the tables need of the token rows of one run."""

    predictors: list[str]
    first: int
    train: Side
    held_out: Side
    density: dict[str, NDArray[np.int64]]
    ranges: dict[str, float]
    floor: float = float("nan")  # of dH, nats
    tokens: int = 0
    dropped: int = 0
    states: DistinctCount = field(default_factory=DistinctCount)
    absent: dict[str, int] = field(default_factory=dict)

    def under_floor(self, total: NDArray[np.float64]) -> float:
        """Share of the rows of sums (columns,) with |dH| below two floors; NaN without a floor."""
        if not (np.isfinite(self.floor) and total[_W] > 0):
            return float("nan")
        return float(total[_WU] / total[_W])


@dataclass(frozen=True)
class Ranges:
    """From the first pass: tail quantiles of |dH| per side, and of the training rows' predictions.

    edges: predictor -> inner edges of its calibration bins, of evenly spaced rows.
    """

    y: float
    y_held_out: float
    x: dict[str, float]
    edges: dict[str, NDArray[np.float32]]


def measure_ranges(steps: Steps, predictors: list[str], first: int, rows: int) -> Ranges:
    """First pass: exact TRIM quantiles over the steps from `first` on, and edges."""
    names = ["dH", *(PREDICTOR_PREFIX + p for p in predictors)]
    tails = {name: TailQuantile(TRIM, rows) for name in names}
    held = TailQuantile(TRIM, rows)
    sample: dict[str, list[NDArray[np.float32]]] = {p: [] for p in predictors}
    stride, seen = _stride(rows), 0
    for step, columns in steps(["flags", *names]):
        if step < first:
            continue
        good = usable(columns)
        held_out = (columns["flags"] & HELD_OUT) != 0
        held.add(np.abs(columns["dH"][good & held_out]))
        train = good & ~held_out
        at = np.flatnonzero(train)[-seen % stride :: stride]
        for name in names:
            values = np.abs(columns[name] if train.all() else columns[name][train])
            tails[name].add(values[np.isfinite(values)])
        for name, parts in sample.items():
            values = columns[PREDICTOR_PREFIX + name][at]
            parts.append(values[np.isfinite(values)])
        seen += int(train.sum())
    x = {p: tails[PREDICTOR_PREFIX + p].value() for p in predictors}
    edges = {
        name: quantile_edges(np.concatenate([np.empty(0, np.float32), *parts]), QUANTILES)
        for name, parts in sample.items()
    }
    return Ranges(tails["dH"].value(), held.value(), x, edges)


def _stride(rows: int) -> int:
    return max(1, -(-rows // _SAMPLE_ROWS))


def scan(
    steps: Steps,
    columns: Sequence[str],
    predictors: list[str],
    groups: Groups,
    probability: Callable[[int], float],
    first: int,
    ranges: Ranges,
    rows: int,
    floor: float = float("nan"),
) -> Scan:
    """Second pass: sums per step, stratum and prompt group, densities and distinct states."""
    shape = (len(CORRELATED), len(predictors), len(PAIR_SUMS))
    out = Scan(
        predictors=predictors,
        first=first,
        train=Side(
            STRATA,
            MEMBER,
            len(CORRELATED),
            cuts={kind: [] for kind in CUTS},
            edges=ranges.edges,
            tail=np.zeros(shape),
        ),
        held_out=Side(HELD_OUT_STRATA, HELD_OUT_MEMBER, 1, tail=np.zeros((1, *shape[1:]))),
        density={p: np.zeros(BINS * BINS, np.int64) for p in predictors},
        ranges={"dH": ranges.y, **ranges.x},
        floor=floor,
    )
    stride, seen = _stride(rows), 0
    for step, block in steps(columns):
        train, held_out = split(step, block, groups, probability(step), floor)
        out.tokens += len(train.y)
        out.dropped += len(block["dH"]) - len(train.y) - len(held_out.y)
        if train.state is not None and train.state.any():  # all zero: the loop gave none
            out.states.add(train.state)
        for side, part, limit in (
            (out.train, train, ranges.y),
            (out.held_out, held_out, ranges.y_held_out),
        ):
            if len(part.y):
                reduce_step(side, part, predictors, limit if step >= first else None)
                if step >= first:
                    keep_rows(side, part, predictors, -seen % stride, stride)
        for name in predictors:
            if name not in train.x and len(train.y):
                out.absent[name] = out.absent.get(name, 0) + 1
            elif step >= first:
                _count(out.density[name], train.x[name], train.y, ranges.x[name], ranges.y)
        seen += len(block["dH"])
    return out


def _count(
    counts: NDArray[np.int64],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    x_range: float,
    y_range: float,
) -> None:
    if not (x_range > 0 and y_range > 0):
        return
    inside = (np.abs(x) <= x_range) & (np.abs(y) <= y_range)
    ix, iy = (
        np.minimum((v[inside].astype(np.float64) / r + 1) * (BINS / 2), BINS - 1).astype(np.int64)
        for v, r in ((x, x_range), (y, y_range))
    )
    counts += np.bincount(ix * BINS + iy, minlength=BINS * BINS)
