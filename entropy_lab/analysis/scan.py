"""Two passes over the token rows, one step at a time, to sums that everything else needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from entropy_lab.analysis.bins import CUTS, QUANTILES
from entropy_lab.analysis.reduce import reduce_step
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
from entropy_lab.analysis.side import LateSums, Side, StepSums
from entropy_lab.analysis.statistics import (
    DistinctCount,
    TailQuantile,
    one_of_each,
    quantile_edges,
)
from entropy_lab.analysis.tables import HELD_OUT, PREDICTOR_PREFIX, TRIM

Steps = Callable[[Sequence[str]], Iterable[tuple[int, Columns]]]

_W, _WU = (BASE.index(name) for name in ("w", "wu"))
_SAMPLE_ROWS = 2**20  # rows held for what needs an order of all rows
_THREADS = 4  # each holds the columns and sums of a step


@dataclass
class Scan:
    """Everything the tables need of the token rows of one run."""

    predictors: list[str]
    first: int
    train: Side
    held_out: Side
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

    edges: predictor -> inner edges of its calibration bins, of a sample of the rows.
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
        at = np.flatnonzero(train)
        at = at[one_of_each(stride, len(at), seen, step)]
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


@dataclass(frozen=True)
class _Reduced:
    """What one step gives, still apart from the other steps; sums: of each side that has rows."""

    rows: int
    dropped: int
    states: list[NDArray[np.int64] | None]
    absent: list[str]
    sums: list[tuple[StepSums, LateSums | None] | None]


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
    train = Side(
        STRATA, MEMBER, len(CORRELATED), predictors, ranges.y, tuple(CUTS), ranges.edges, ranges.x
    )
    held_out = Side(HELD_OUT_STRATA, HELD_OUT_MEMBER, 1, predictors, ranges.y_held_out)
    out = Scan(predictors, first, train, held_out, floor)
    stride = _stride(rows)

    def blocks() -> Iterator[tuple[int, Columns, int]]:
        seen = 0
        for step, block in steps(columns):
            yield step, block, seen
            seen += len(block["dH"])

    def work(step: int, block: Columns, seen: int) -> _Reduced:
        parts = split(step, block, groups, probability(step), floor)
        late = step >= first
        own = parts[0]
        return _Reduced(
            rows=len(own.y),
            dropped=len(block["dH"]) - sum(len(part.y) for part in parts),
            states=[part.states for part in parts],
            absent=[name for name in predictors if name not in own.x] if len(own.y) else [],
            sums=[
                reduce_step(side, part, late, seen, stride) if len(part.y) else None
                for side, part in zip((train, held_out), parts, strict=True)
            ],
        )

    for one in _in_order(work, blocks()):
        _take(out, one)
    return out


def _take(out: Scan, one: _Reduced) -> None:
    out.tokens += one.rows
    out.dropped += one.dropped
    for name in one.absent:
        out.absent[name] = out.absent.get(name, 0) + 1
    if one.states[0] is not None:
        out.states.add(one.states[0])
    for side, states, sums in zip((out.train, out.held_out), one.states, one.sums, strict=True):
        if sums is not None:
            side.add(*sums)
            if states is not None and sums[1] is not None:
                side.states.add(states)


def _in_order(
    work: Callable[..., _Reduced], jobs: Iterable[tuple[int, Columns, int]]
) -> Iterator[_Reduced]:
    """work(*job) of every job, in order, by threads: numpy lets go of the interpreter's lock.

    Only a few jobs are in memory at a time. There are as many threads as pyarrow decodes with.
    """
    threads = min(_THREADS, pa.cpu_count())
    waiting: deque[Future[_Reduced]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            waiting.append(pool.submit(work, *job))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
