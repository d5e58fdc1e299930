"""The rows of one step to the sums that everything else needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.bins import CUTS
from entropy_lab.analysis.rows import BASE, CODES, FORM, StepRows
from entropy_lab.analysis.statistics import (
    DistinctCount,
    bins_of,
    centred,
    spearman,
    top_rows,
    without,
)
from entropy_lab.analysis.tables import TOP, TRIM

Array = NDArray[np.float64]

MIN_ROWS = 8  # fewer rows in a step give no correlation


@dataclass
class Side:
    """What is kept of the training rows, or of the held-out rows.

    cells[s] (groups, strata, columns): BASE, then FORM of every predictor (NaN where it is
    absent). cuts[kind][s] (groups, bins, columns): the same by the bins of each kind of CUTS.
    calibration[predictor][s] (groups, bins, 4): n, w, wx, wy by the bins that edges[predictor]
    part. cuts and calibration: of training rows alone, steps from `first` on.
    tops[s] (groups, predictors + 2), steps from `first` on: w |dH| in the TOP share of the step's
    rows by |prediction|, in that by |dH|, in all rows. trimmed[s], trimmed_within[s] (correlated
    strata, predictors, 6): PAIR_SUMS of the rows up to the step's TRIM quantile of |dH|, and the
    same of deviations from group means. srcc[s] (strata, predictors). tail (strata, predictors,
    6): PAIR_SUMS beyond the run's TRIM quantile, steps from `first` on. kept: (code, y, x...) of
    evenly spaced rows.
    """

    strata: tuple[str, ...]
    member: Array  # (CODES, strata)
    correlated: int  # the first strata, which have correlations
    steps: list[int] = field(default_factory=list)
    cells: list[Array] = field(default_factory=list)
    cuts: dict[str, list[Array]] = field(default_factory=dict)
    edges: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    calibration: dict[str, list[Array]] = field(default_factory=dict)
    trimmed: list[Array] = field(default_factory=list)
    trimmed_within: list[Array] = field(default_factory=list)
    srcc: list[Array] = field(default_factory=list)
    tail: Array = field(default_factory=lambda: np.zeros(0))
    tops: list[Array] = field(default_factory=list)
    kept: list[NDArray[np.float32]] = field(default_factory=list)
    kept_code: list[NDArray[np.int64]] = field(default_factory=list)
    states: DistinctCount = field(default_factory=DistinctCount)


def reduce_step(side: Side, part: StepRows, predictors: list[str], limit: float | None) -> None:
    """Add the sums of one step; limit: the run's TRIM quantile of |dH|, None before `first`."""
    size = np.abs(part.y)
    whole = _sums(side, part, predictors)
    side.steps.append(part.step)
    side.cells.append(whole)
    side.srcc.append(_rank_correlations(side, part, predictors))
    step_tail = _pick(part, size > np.quantile(size, TRIM))
    kept = without(pair_sums(whole), pair_sums(_sums(side, step_tail, predictors)))
    kept = kept[:, : side.correlated]
    side.trimmed.append(kept.sum(axis=0))
    side.trimmed_within.append(centred(kept).sum(axis=0))
    if limit is not None:
        for kind, done in side.cuts.items():
            done.append(_by_bin(part, predictors, kind))
        for name, edges in side.edges.items():
            side.calibration.setdefault(name, []).append(_by_prediction(part, name, edges))
        side.tops.append(_tops(part, predictors))
        beyond = pair_sums(_sums(side, _pick(part, size > limit), predictors))
        side.tail += beyond[:, : side.correlated].sum(axis=0)
        if part.state is not None and part.state.any():
            side.states.add(part.state)


def _sums(side: Side, part: StepRows, predictors: list[str]) -> Array:
    sums = _columns(part, predictors, part.group * CODES + part.code, (part.groups, CODES))
    return np.einsum("gck,cs->gsk", sums, side.member, optimize=True)


def _by_bin(part: StepRows, predictors: list[str], kind: str) -> Array:
    """Columns of each bin of a kind of CUTS: (groups, bins, columns); zeros where not logged."""
    shape = part.groups, len(CUTS[kind])
    if kind not in part.cuts:
        return np.zeros((*shape, len(BASE) + len(FORM) * len(predictors)))
    return _columns(part, predictors, part.group * shape[1] + part.cuts[kind], shape)


def _by_prediction(part: StepRows, name: str, edges: NDArray[np.float32]) -> Array:
    """n, w, wx, wy of each bin of a form's prediction x: (groups, bins, 4); zeros where absent."""
    shape = part.groups, len(edges) + 1
    if name not in part.x:
        return np.zeros((*shape, 4))
    x, w = part.x[name], part.weight
    cell = part.group * shape[1] + bins_of(x, edges)
    sums = [np.bincount(cell, v, shape[0] * shape[1]) for v in (None, w, w * x, w * part.y)]
    return np.stack(sums, axis=-1).reshape(*shape, 4).astype(np.float64, copy=False)


def _columns(
    part: StepRows, predictors: list[str], cell: NDArray[np.int64], shape: tuple[int, int]
) -> Array:
    """BASE, then FORM of every predictor, summed in each cell: (*shape, columns)."""

    def total(values: Array | None) -> Array:
        sums = np.bincount(cell, values, shape[0] * shape[1])
        return sums.reshape(shape).astype(np.float64, copy=False)

    w = part.weight
    wy = w * part.y
    columns = [None, w, wy, wy * part.y, np.abs(wy), w * part.entropy]
    columns += [w * part.under, w * (part.y < 0)]
    sums = [total(c) for c in columns]
    for name in predictors:
        if name not in part.x:
            sums += [np.full(shape, np.nan)] * len(FORM)
            continue
        x = part.x[name].astype(np.float64)
        wxy = wy * x
        sums += [total(v) for v in (w * x, w * x * x, wxy, w * (wxy > 0), w * (wxy != 0))]
    return np.stack(sums, axis=-1)


def pair_sums(cells: Array) -> Array:
    """Cells (..., columns) to PAIR_SUMS (..., predictors, 6); zeros where a form is absent."""
    x = _forms(cells)
    w, wy, wyy = (np.broadcast_to(cells[..., i, None], x.shape[:-1]) for i in (1, 2, 3))
    out = np.stack([w, x[..., 0], wy, x[..., 1], wyy, x[..., 2]], axis=-1)
    return np.where(np.isnan(x[..., :1]), 0.0, out)


def sign_sums(cells: Array) -> Array:
    """Cells (..., columns) to (..., predictors, 2): weight of equal signs, of pairs without a 0."""
    return np.nan_to_num(_forms(cells)[..., 3:])


def _forms(cells: Array) -> Array:
    return cells[..., len(BASE) :].reshape(*cells.shape[:-1], -1, len(FORM))


def _tops(part: StepRows, predictors: list[str]) -> Array:
    size = part.weight * np.abs(part.y)

    def held(at: NDArray[np.bool_] | slice) -> Array:
        sums = np.bincount(part.group[at], size[at], part.groups)
        return sums.astype(np.float64, copy=False)

    missing = np.full(part.groups, np.nan)
    scores = [part.x.get(name) for name in predictors]
    columns = [missing if x is None else held(top_rows(x, TOP)) for x in scores]
    columns += [held(top_rows(part.y, TOP)), held(slice(None))]
    return np.stack(columns, axis=-1)


def _pick(part: StepRows, rows: NDArray[np.bool_]) -> StepRows:
    at = np.flatnonzero(rows)
    return StepRows(
        part.step, part.y[at], part.under[at], {k: v[at] for k, v in part.x.items()}, part.code[at],
        part.entropy[at], part.group[at], part.groups, part.weight[at], None,
    )  # fmt: skip


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


def keep_rows(side: Side, part: StepRows, predictors: list[str], start: int, stride: int) -> None:
    """Keep every `stride`-th row from `start` on for the pooled Spearman correlation."""
    at = slice(start, None, stride)
    missing = np.full(len(part.y[at]), np.nan, np.float32)
    rows = [part.y[at], *(part.x[p][at] if p in part.x else missing for p in predictors)]
    side.kept.append(np.stack(rows))
    side.kept_code.append(part.code[at])
