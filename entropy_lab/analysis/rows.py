"""Token rows of one step, checked, weighted and split into training and held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.bins import (
    ENTROPY_EDGES,
    POSITION_EDGES,
    PROBABILITY_EDGES,
    STATE_EDGES,
    entropy_names,
    probability_names,
)
from entropy_lab.analysis.statistics import bins_of
from entropy_lab.analysis.tables import HELD_OUT, NOT_SCORABLE, PREDICTOR_PREFIX, QUADRANTS

Columns = Mapping[str, NDArray]

_P, _H = len(PROBABILITY_EDGES) - 1, len(ENTROPY_EDGES) - 1
_LOGP_EDGES = np.log(np.array(PROBABILITY_EDGES[1:-1], dtype=np.float32))
_H_EDGES = np.array(ENTROPY_EDGES[1:-1], dtype=np.float32)
CELL = (len(QUADRANTS), _P, _H)  # every row lies in one quadrant x probability x entropy cell
CODES = math.prod(CELL)
CORRELATED = ("all", *QUADRANTS, *probability_names())  # strata with rows in `validation`
STRATA = (*CORRELATED, *entropy_names())
# Columns of the sums. w = weight, y = dH, ay = |dH|, h = entropy, u: |dH| is below two floors,
# d: dH < 0; then of every form x = its prediction, e: x and y have one sign, p: neither is 0.
BASE = ("n", "w", "wy", "wyy", "way", "wh", "wu", "wd")
FORM = ("wx", "wxx", "wxy", "we", "wp")


def _membership() -> NDArray[np.bool_]:
    quadrant, p, h = np.unravel_index(np.arange(CODES), CELL)
    columns = [np.ones(CODES, bool)]
    columns += [quadrant == i for i in range(len(QUADRANTS))]
    columns += [p == i for i in range(_P)]
    columns += [h == i for i in range(_H)]
    return np.stack(columns, axis=1)


MEMBER = _membership()  # (CODES, strata)
HELD_OUT_STRATA = ("heldout",)
HELD_OUT_MEMBER = MEMBER[:, :1]


@dataclass(frozen=True)
class Groups:
    """Prompt group and inclusion probability of every response, looked up by uid."""

    uid: NDArray[np.int64]
    group: NDArray[np.int64]
    probability: NDArray[np.float64]

    @classmethod
    def of(cls, samples: Columns) -> Groups:
        """From the samples' columns uid, group, inclusion_prob; empty columns are fine."""
        uid = np.asarray(samples.get("uid", np.empty(0)), dtype=np.int64)
        order = np.argsort(uid, kind="stable")
        group = np.asarray(samples.get("group", uid), dtype=np.int64)
        probability = np.asarray(samples.get("inclusion_prob", np.full(len(uid), np.nan)))
        return cls(uid[order], group[order], probability[order].astype(np.float64))

    @property
    def known(self) -> bool:
        """Whether responses are grouped at all; without groups each response is its own."""
        return bool((self.group != self.uid).any())

    def find(self, uid: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Group and probability; a response without a sample is its own group, probability NaN."""
        if len(self.uid) == 0:
            return uid, np.full(len(uid), np.nan)
        at = np.minimum(np.searchsorted(self.uid, uid), len(self.uid) - 1)
        found = self.uid[at] == uid
        return np.where(found, self.group[at], uid), np.where(found, self.probability[at], np.nan)


@dataclass(frozen=True)
class StepRows:
    """The usable rows (n,) of one step: training rows, or held-out rows.

    y: dH. under: |dH| lies below two floors. x: predictor -> predicted dH, finite everywhere (a
    predictor that is not is absent). code: cell of STRATA. group: 0..groups-1. weight: 1 /
    inclusion probability. states: the distinct ones, None where none are logged. cuts: bin of each
    kind of CUTS, as far as the log has what it is made of.
    """

    step: int
    y: NDArray[np.float32]
    under: NDArray[np.bool_]
    x: dict[str, NDArray[np.float32]]
    code: NDArray[np.int64]
    entropy: NDArray[np.float32]
    group: NDArray[np.int64]
    groups: int
    weight: NDArray[np.float64]
    states: NDArray[np.int64] | None
    cuts: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


def usable(columns: Columns) -> NDArray[np.bool_]:
    """Rows that can be scored and whose dH is finite."""
    return ((columns["flags"] & NOT_SCORABLE) == 0) & np.isfinite(columns["dH"])


def split(
    step: int, columns: Columns, groups: Groups, probability: float, floor: float = float("nan")
) -> tuple[StepRows, StepRows]:
    """Training rows and held-out rows of a step; `probability` serves rows without a sample.

    floor: noise floor of dH, nats; NaN where none was measured, and no row lies under it.
    """
    good = usable(columns)
    held_out = (columns["flags"] & HELD_OUT) != 0
    return tuple(  # type: ignore[return-value]
        _select(step, columns, good & side, groups, probability, floor)
        for side in (~held_out, held_out)
    )


def _select(
    step: int,
    columns: Columns,
    keep: NDArray[np.bool_],
    groups: Groups,
    probability: float,
    floor: float,
) -> StepRows:
    picked = columns if keep.all() else {name: v[keep] for name, v in columns.items()}
    group, count, weight = group_index(picked["uid"], groups, probability)
    states, cuts = _cuts(picked.get("pos"), picked.get("state"))
    forms = {k: v for k, v in picked.items() if k.startswith(PREDICTOR_PREFIX)}
    return StepRows(
        step=step,
        y=picked["dH"],
        under=np.abs(picked["dH"]) < 2 * floor,
        x={
            name.removeprefix(PREDICTOR_PREFIX): value
            for name, value in forms.items()
            if np.isfinite(value.sum(dtype=np.float64))
        },
        code=_code(picked),
        entropy=picked["entropy"],
        group=group,
        groups=count,
        weight=weight,
        states=states,
        cuts=cuts,
    )


def group_index(
    uid: NDArray[np.int64], groups: Groups, probability: float
) -> tuple[NDArray[np.int64], int, NDArray[np.float64]]:
    """(group of each row as 0..count-1, count, weight of each row) of rows sorted by uid."""
    # Rows of a response stand together, so only the first of each run is looked up.
    if len(uid) == 0:
        return np.empty(0, np.int64), 0, np.empty(0)
    heads = np.flatnonzero(np.concatenate(([True], uid[1:] != uid[:-1])))
    length = np.diff(np.append(heads, len(uid)))
    group, found = groups.find(uid[heads])
    chance = np.where((found > 0) & (found <= 1), found, probability)
    names, index = np.unique(group, return_inverse=True)
    return np.repeat(index, length), len(names), np.repeat(1 / chance, length)


def _code(columns: Columns) -> NDArray[np.int64]:
    advantage, logp, entropy = (columns[k] for k in ("advantage", "logp", "entropy"))
    region = (logp <= -entropy) + 2 * (advantage < 0)
    region = np.where(advantage == 0, len(QUADRANTS) - 1, region)
    p, h = bins_of(logp, _LOGP_EDGES), bins_of(entropy, _H_EDGES)
    return ((region * _P + p) * _H + h).astype(np.int64, copy=False)


def _cuts(
    pos: NDArray | None, state: NDArray | None
) -> tuple[NDArray[np.int64] | None, dict[str, NDArray[np.uint8]]]:
    """The distinct states, and the bin of each row (n,) in the kinds of CUTS."""
    states, out = None, {}
    if pos is not None:
        out["position"] = bins_of(pos, POSITION_EDGES[1:])
    if state is not None and state.any():  # all zero: the loop gave none
        states, index, rows = np.unique(state, return_inverse=True, return_counts=True)
        out["states"] = bins_of(rows, STATE_EDGES[1:])[index]
    return states, out


def needed(predictors: Sequence[str]) -> list[str]:
    """The token columns that the scan reads."""
    base = ["uid", "pos", "state", "flags", "advantage", "logp", "entropy", "dH"]
    return base + [PREDICTOR_PREFIX + name for name in predictors]
