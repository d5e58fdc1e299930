"""Two passes over the token rows, one step at a time, to sums that everything else needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.rows import (
    BASE,
    CODES,
    CORRELATED,
    HELD_OUT_MEMBER,
    HELD_OUT_STRATA,
    MEMBER,
    POSITIONS,
    STRATA,
    Columns,
    Groups,
    StepRows,
    split,
    usable,
)
from entropy_lab.analysis.statistics import (
    PAIR_SUMS,
    DistinctCount,
    TailQuantile,
    centred,
    spearman,
    without,
)
from entropy_lab.analysis.tables import HELD_OUT, PREDICTOR_PREFIX, TRIM

Array = NDArray[np.float64]
Steps = Callable[[Sequence[str]], Iterable[tuple[int, Columns]]]

BINS = 61  # of the density, along each axis; odd, so that zero has its own bin
MIN_ROWS = 8  # fewer rows in a step give no correlation
_SPEARMAN_ROWS = 2**20  # rows held for the pooled Spearman correlation


@dataclass
class Side:
    """What is kept of the training rows, or of the held-out rows.

    cells[s] (groups, strata, columns): BASE, then wx, wxx, wxy of every predictor (NaN where it
    is absent). positions[s] (groups, POSITIONS, columns): the same by position. trimmed[s],
    trimmed_within[s] (correlated strata, predictors, 6): PAIR_SUMS of the rows up to the step's
    TRIM quantile of |dH|, and the same of deviations from group means. signs[s] (strata,
    predictors, 2): weight of equal signs, weight of pairs without a zero. srcc[s] (strata,
    predictors). tail (strata, predictors, 6): PAIR_SUMS beyond the run's TRIM quantile, steps
    from `first` on. kept: (code, y, x...) of evenly spaced rows.
    """

    strata: tuple[str, ...]
    member: Array  # (CODES, strata)
    correlated: int  # the first strata, which have correlations
    steps: list[int] = field(default_factory=list)
    cells: list[Array] = field(default_factory=list)
    positions: list[Array] = field(default_factory=list)
    trimmed: list[Array] = field(default_factory=list)
    trimmed_within: list[Array] = field(default_factory=list)
    signs: list[Array] = field(default_factory=list)
    srcc: list[Array] = field(default_factory=list)
    tail: Array = field(default_factory=lambda: np.zeros(0))
    kept: list[NDArray[np.float32]] = field(default_factory=list)
    kept_code: list[NDArray[np.int64]] = field(default_factory=list)
    states: DistinctCount = field(default_factory=DistinctCount)


@dataclass
class Scan:
    """Everything the tables need of the token rows of one run."""

    predictors: list[str]
    first: int
    train: Side
    held_out: Side
    density: dict[str, NDArray[np.int64]]
    ranges: dict[str, float]
    tokens: int = 0
    dropped: int = 0
    under_floor: float = 0.0  # weight of the training rows with |dH| below two floors
    states: DistinctCount = field(default_factory=DistinctCount)
    absent: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranges:
    """Tail quantiles from the first pass: of |dH| per side, and of |x| of the training rows."""

    y: float
    y_held_out: float
    x: dict[str, float]


def measure_ranges(steps: Steps, predictors: list[str], first: int, rows: int) -> Ranges:
    """First pass: exact TRIM quantiles over the steps from `first` on."""
    names = ["dH", *(PREDICTOR_PREFIX + p for p in predictors)]
    tails = {name: TailQuantile(TRIM, rows) for name in names}
    held = TailQuantile(TRIM, rows)
    for step, columns in steps(["flags", *names]):
        if step < first:
            continue
        good = usable(columns)
        held_out = (columns["flags"] & HELD_OUT) != 0
        held.add(np.abs(columns["dH"][good & held_out]))
        train = good & ~held_out
        for name in names:
            values = np.abs(columns[name] if train.all() else columns[name][train])
            tails[name].add(values[np.isfinite(values)])
    x = {p: tails[PREDICTOR_PREFIX + p].value() for p in predictors}
    return Ranges(tails["dH"].value(), held.value(), x)


def scan(
    steps: Steps,
    columns: Sequence[str],
    predictors: list[str],
    groups: Groups,
    probability: Callable[[int], float],
    first: int,
    ranges: Ranges,
    rows: int,
    floor: float = 0.0,
) -> Scan:
    """Second pass: sums per step, stratum and prompt group, densities and distinct states."""
    shape = (len(CORRELATED), len(predictors), len(PAIR_SUMS))
    out = Scan(
        predictors=predictors,
        first=first,
        train=Side(STRATA, MEMBER, len(CORRELATED), tail=np.zeros(shape)),
        held_out=Side(HELD_OUT_STRATA, HELD_OUT_MEMBER, 1, tail=np.zeros((1, *shape[1:]))),
        density={p: np.zeros(BINS * BINS, np.int64) for p in predictors},
        ranges={"dH": ranges.y, **ranges.x},
    )
    stride = max(1, -(-rows // _SPEARMAN_ROWS))
    seen = 0
    for step, block in steps(columns):
        train, held_out = split(step, block, groups, probability(step))
        out.tokens += len(train.y)
        out.dropped += len(block["dH"]) - len(train.y) - len(held_out.y)
        if train.state is not None and train.state.any():  # all zero: the loop gave none
            out.states.add(train.state)
        if step >= first:
            out.under_floor += float(train.weight[np.abs(train.y) < 2 * floor].sum())
        for side, part, limit in (
            (out.train, train, ranges.y),
            (out.held_out, held_out, ranges.y_held_out),
        ):
            if len(part.y):
                _reduce(side, part, predictors, limit if step >= first else None)
                if step >= first:
                    _keep(side, part, predictors, -seen % stride, stride)
        for name in predictors:
            if name not in train.x and len(train.y):
                out.absent[name] = out.absent.get(name, 0) + 1
            elif step >= first:
                _count(out.density[name], train.x[name], train.y, ranges.x[name], ranges.y)
        seen += len(block["dH"])
    return out


def _reduce(side: Side, part: StepRows, predictors: list[str], limit: float | None) -> None:
    size = np.abs(part.y)
    whole = _sums(side, part, predictors)
    side.steps.append(part.step)
    side.cells.append(whole)
    if part.position is not None and limit is not None:
        cell = part.group * len(POSITIONS) + part.position
        shape = part.groups, len(POSITIONS)
        side.positions.append(_columns(part, predictors, cell, shape))
    side.signs.append(_signs(side, part, predictors))
    side.srcc.append(_rank_correlations(side, part, predictors))
    step_tail = _pick(part, size > np.quantile(size, TRIM))
    kept = without(pair_sums(whole), pair_sums(_sums(side, step_tail, predictors)))
    kept = kept[:, : side.correlated]
    side.trimmed.append(kept.sum(axis=0))
    side.trimmed_within.append(centred(kept).sum(axis=0))
    if limit is not None:
        beyond = pair_sums(_sums(side, _pick(part, size > limit), predictors))
        side.tail += beyond[:, : side.correlated].sum(axis=0)
        if part.state is not None and part.state.any():
            side.states.add(part.state)


def _sums(side: Side, part: StepRows, predictors: list[str]) -> Array:
    sums = _columns(part, predictors, part.group * CODES + part.code, (part.groups, CODES))
    return np.einsum("gck,cs->gsk", sums, side.member, optimize=True)


def _columns(
    part: StepRows, predictors: list[str], cell: NDArray[np.int64], shape: tuple[int, int]
) -> Array:
    """BASE, then wx, wxx, wxy of every predictor, summed in each cell: (*shape, columns)."""

    def total(values: Array | None) -> Array:
        sums = np.bincount(cell, values, shape[0] * shape[1])
        return sums.reshape(shape).astype(np.float64, copy=False)

    w = part.weight
    wy = w * part.y
    columns = [None, w, wy, wy * part.y, np.abs(wy), w * part.entropy]
    sums = [total(c) for c in columns]
    for name in predictors:
        if name not in part.x:
            sums += [np.full(shape, np.nan)] * 3
            continue
        x = part.x[name].astype(np.float64)
        sums += [total(w * x), total(w * x * x), total(wy * x)]
    return np.stack(sums, axis=-1)


def pair_sums(cells: Array) -> Array:
    """Cells (..., columns) to PAIR_SUMS (..., predictors, 6); zeros where a form is absent."""
    x = cells[..., len(BASE) :]
    x = x.reshape(*x.shape[:-1], -1, 3)
    w, wy, wyy = (np.broadcast_to(cells[..., i, None], x.shape[:-1]) for i in (1, 2, 3))
    out = np.stack([w, x[..., 0], wy, x[..., 1], wyy, x[..., 2]], axis=-1)
    return np.where(np.isnan(x[..., :1]), 0.0, out)


def _pick(part: StepRows, rows: NDArray[np.bool_]) -> StepRows:
    at = np.flatnonzero(rows)
    return StepRows(
        part.step, part.y[at], {k: v[at] for k, v in part.x.items()}, part.code[at],
        part.entropy[at], part.group[at], part.groups, part.weight[at], None,
    )  # fmt: skip


def _signs(side: Side, part: StepRows, predictors: list[str]) -> Array:
    out = np.zeros((len(side.strata), len(predictors), 2))
    y = part.y.astype(np.float64)
    for k, name in enumerate(predictors):
        if name in part.x:
            product = part.x[name] * y
            hits = np.bincount(part.code, part.weight * (product > 0), CODES)
            pairs = np.bincount(part.code, part.weight * (product != 0), CODES)
            out[:, k, 0], out[:, k, 1] = hits @ side.member, pairs @ side.member
    return out


def _rank_correlations(side: Side, part: StepRows, predictors: list[str]) -> Array:
    out = np.full((side.correlated, len(predictors)), np.nan)
    present = [k for k, name in enumerate(predictors) if name in part.x]
    columns = [part.x[predictors[k]] for k in present]
    for s in range(side.correlated):
        at = slice(None) if s == 0 else np.flatnonzero(side.member[part.code, s])
        y = part.y[at]
        if len(y) >= MIN_ROWS:
            out[s, present] = spearman([c[at] for c in columns], y)
    return out


def _keep(side: Side, part: StepRows, predictors: list[str], start: int, stride: int) -> None:
    at = slice(start, None, stride)
    missing = np.full(len(part.y[at]), np.nan, np.float32)
    rows = [part.y[at], *(part.x[p][at] if p in part.x else missing for p in predictors)]
    side.kept.append(np.stack(rows))
    side.kept_code.append(part.code[at])


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
