"""The rows of one step to the sums that everything else needs; pure, so steps run side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from entropy_lab.analysis.bins import CUTS
from entropy_lab.analysis.rows import BASE, CELL, CODES, FORM, StepRows
from entropy_lab.analysis.side import DENSITY_BINS, LateSums, Side, StepSums
from entropy_lab.analysis.statistics import (
    bins_of,
    centred,
    one_of_each,
    spearman,
    top_rows,
    without,
)
from entropy_lab.analysis.tables import TOP, TRIM

Array = NDArray[np.float64]
Cells = tuple[NDArray[np.integer], int]  # cell of each row inside its group, cells of a group

MIN_ROWS = 8  # fewer rows in a step give no correlation
RANKED_ROWS = 2**14  # of a step and stratum; more would hardly change a rank correlation
_CHUNK = 8192  # rows whose columns stay in a core's cache


def reduce_step(
    side: Side, part: StepRows, late: bool, seen: int, stride: int
) -> tuple[StepSums, LateSums | None]:
    """The sums of one step with rows; late: it counts for correlations and tables.

    seen: rows of earlier steps; one random row of every `stride` is kept.
    """
    names, size = side.predictors, np.abs(part.y)
    cuts = {kind: (part.cuts[kind], len(CUTS[kind])) for kind in side.kinds if kind in part.cuts}
    by_code, *by_cut = _columns(part, names, [(part.code, CODES), *(cuts.values() if late else ())])
    cells = _strata(by_code, side)
    pairs = pair_sums(cells)[:, : side.correlated]
    rest = without(pairs, _pairs(side, _pick(part, size > np.quantile(size, TRIM))))
    sums = StepSums(
        step=part.step,
        cells=cells,
        within=centred(pairs),
        trimmed=rest.sum(axis=0),
        trimmed_within=centred(rest).sum(axis=0),
        srcc=_rank_correlations(side, part),
    )
    if not late:
        return sums, None
    at = one_of_each(stride, len(part.y), seen, part.step)
    missing = np.full(len(at), np.nan, np.float32)
    kept = [part.y[at], *(part.x[p][at] if p in part.x else missing for p in names)]
    empty = {k: np.zeros((part.groups, len(CUTS[k]), cells.shape[-1])) for k in side.kinds}
    return sums, LateSums(
        tops=_tops(part, names),
        cuts=empty | dict(zip(cuts, by_cut, strict=True)),
        calibration={name: _by_prediction(part, name, e) for name, e in side.edges.items()},
        kept=np.stack(kept),
        code=part.code[at],
        tail=_pairs(side, _pick(part, size > side.limit)).sum(axis=0),
        density=_densities(side, part, size),
    )


def _columns(part: StepRows, predictors: list[str], cells: list[Cells]) -> list[Array]:
    """Sums of BASE and of FORM of every predictor in each cell: (groups, cells, columns) each.

    A product with the matrix of which row is in which cell, chunk by chunk: rows of a group stand
    together, so a chunk touches few groups.
    """
    present = [name for name in predictors if name in part.x]
    width = len(BASE) + len(FORM) * len(present)
    sums = [np.zeros((part.groups, count, width)) for _, count in cells]
    for start in range(0, len(part.y), _CHUNK):
        at = slice(start, start + _CHUNK)
        values, group = _values(part, present, at), part.group[at]
        low, high = int(group.min()), int(group.max()) + 1
        ends = np.arange(len(group) + 1)
        for total, (cell, count) in zip(sums, cells, strict=True):
            place = (group - low) * count + cell[at]
            shape = (high - low) * count, len(group)
            inside = csc_array((np.ones(len(group)), place, ends), shape=shape)
            total[low:high] += (inside @ values).reshape(high - low, count, width)
    if present == predictors:
        return sums
    known = np.repeat(
        [True] + [name in part.x for name in predictors],
        [len(BASE)] + [len(FORM)] * len(predictors),
    )
    out = [np.full((*total.shape[:2], len(known)), np.nan) for total in sums]
    for whole, total in zip(out, sums, strict=True):
        whole[..., known] = total
    return out


def _values(part: StepRows, predictors: list[str], at: slice) -> Array:
    w, y = part.weight[at], part.y[at].astype(np.float64)
    wy = w * y
    columns = [np.ones_like(w), w, wy, wy * y, np.abs(wy), w * part.entropy[at]]
    columns += [w * part.under[at], w * (y < 0)]
    for name in predictors:
        x = part.x[name][at].astype(np.float64)
        wx, wxy = w * x, wy * x
        columns += [wx, wx * x, wxy, w * (wxy > 0), w * (wxy != 0)]
    return np.stack(columns, axis=-1)


def _strata(by_code: Array, side: Side) -> Array:
    """Sums by CODES (groups, CODES, columns) to those by the side's strata."""
    groups, _, width = by_code.shape
    one = by_code.reshape(groups, *CELL, width)
    edges = [one.sum(axis=axes) for axes in ((2, 3), (1, 3), (1, 2))]
    every = np.concatenate([edges[0].sum(axis=1, keepdims=True), *edges], axis=1)
    return every[:, : len(side.strata)]


def _pairs(side: Side, part: StepRows) -> Array:
    """PAIR_SUMS of the rows (groups, correlated strata, predictors, 6)."""
    (by_code,) = _columns(part, side.predictors, [(part.code, CODES)])
    return pair_sums(_strata(by_code, side))[:, : side.correlated]


def _by_prediction(part: StepRows, name: str, edges: NDArray[np.float32]) -> Array:
    """n, w, wx, wy of each bin of a form's prediction x: (groups, bins, 4); zeros where absent."""
    shape = part.groups, len(edges) + 1
    if name not in part.x:
        return np.zeros((*shape, 4))
    x, w = part.x[name], part.weight
    cell = part.group * shape[1] + bins_of(x, edges)
    sums = [np.bincount(cell, v, shape[0] * shape[1]) for v in (None, w, w * x, w * part.y)]
    return np.stack(sums, axis=-1).reshape(*shape, 4).astype(np.float64, copy=False)


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


def _rank_correlations(side: Side, part: StepRows) -> Array:
    """SRCC (correlated strata, predictors) on at most RANKED_ROWS random rows of each stratum."""
    out = np.full((side.correlated, len(side.predictors)), np.nan)
    present = [k for k, name in enumerate(side.predictors) if name in part.x]
    columns = [part.x[side.predictors[k]] for k in present]
    for s in range(side.correlated):
        inside = np.flatnonzero(side.member[part.code, s])
        stride = max(1, -(-len(inside) // RANKED_ROWS))
        at = inside[one_of_each(stride, len(inside), 0, part.step)]
        if len(at) >= MIN_ROWS:
            out[s, present] = spearman([c[at] for c in columns], part.y[at])
    return out


def _densities(side: Side, part: StepRows, size: NDArray[np.float32]) -> dict[str, NDArray]:
    """Rows per bin of (prediction, dH), of each form that the step has."""
    if not side.limit > 0:
        return {}
    near = size <= side.limit
    y = _density_bin(part.y, side.limit)
    out = {}
    for name, width in side.ranges.items():
        if name in part.x and width > 0:
            x = part.x[name]
            inside = near & (np.abs(x) <= width)
            place = _density_bin(x[inside], width) * DENSITY_BINS + y[inside]
            out[name] = np.bincount(place, minlength=DENSITY_BINS**2)
    return out


def _density_bin(values: NDArray[np.float32], width: float) -> NDArray[np.int64]:
    place = (values.astype(np.float64) / width + 1) * (DENSITY_BINS / 2)
    return np.minimum(place, DENSITY_BINS - 1).astype(np.int64)
