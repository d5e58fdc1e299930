"""Sums over the training token rows of a run by step, prompt group and any key, by DuckDB.

For tables whose keys the main scan does not know: tokens, bins of dH itself. Rows are those that
it uses too: scorable, of the update, with a finite dH, from step `first` on, each weighted by
1 / inclusion probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.bootstrap import MANY_STEPS, Draws, draw, unit
from entropy_lab.analysis.statistics import ratio
from entropy_lab.analysis.tables import HELD_OUT, NOT_SCORABLE
from entropy_lab.errors import RunError
from entropy_lab.record import Run

if TYPE_CHECKING:
    import duckdb

Array = NDArray[np.float64]

# Sign region of a row, as an index into QUADRANTS.
QUADRANT = (
    "CASE WHEN advantage = 0 THEN 4 ELSE (logp <= -entropy)::INT + 2 * (advantage < 0)::INT END"
)


@dataclass(frozen=True)
class TrainRows:
    """The usable training rows of a run, lazily. steps: those from `first` on, ascending."""

    rows: duckdb.DuckDBPyRelation
    steps: list[int]
    grouped: bool

    @property
    def few(self) -> bool:
        """So few steps that intervals, of a third of them at least, resample prompt groups too."""
        return len(self.steps) < 3 * MANY_STEPS

    @property
    def unit(self) -> str:
        """What the intervals resample."""
        return unit(len(self.steps), self.grouped)

    def sums(
        self, keys: Mapping[str, str], sums: Mapping[str, str], where: str = "true"
    ) -> pd.DataFrame:
        """Rows: step, grp, the keys, n (rows), then every sum of w * expression, as SQL says."""
        names = ", ".join(f"{sql} AS {name}" for name, sql in keys.items())
        group = "grp" if self.few else "0 AS grp"
        totals = ", ".join(f"sum(w * ({sql})) AS {name}" for name, sql in sums.items())
        grouping = ", ".join(str(i + 1) for i in range(2 + len(keys)))
        ours = ", ".join(["step", group, *([names] if names else [])])
        sql = f"SELECT {ours}, count(*) AS n, {totals} FROM rows WHERE {where} GROUP BY {grouping}"
        return _asked(self.rows, "rows", sql).df()

    def frame(self, sql: str) -> pd.DataFrame:
        """The answer of a query on the view `rows` (the log's columns and w, grp)."""
        return _asked(self.rows, "rows", sql).df()


def _asked(rows: duckdb.DuckDBPyRelation, name: str, sql: str) -> duckdb.DuckDBPyRelation:
    """The answer of a SELECT on `rows`, which it knows as `name`."""
    found = rows.query(name, sql)
    assert found is not None  # as only statements other than SELECT give
    return found


def train_rows(run: Run, columns: Sequence[str], first: int) -> TrainRows | None:
    """The rows with these columns; None where the log lacks dH, one of them, or any such row."""
    wanted = list(dict.fromkeys(["step", "uid", "flags", "dH", *columns]))
    if not run.token_files or not set(wanted) <= set(run.columns("tokens")):
        return None
    rows = run.tokens(columns=wanted, lazy=True).set_alias("t")
    rows = rows.filter(
        f"(flags & {NOT_SCORABLE + HELD_OUT}) = 0 AND isfinite(dH) AND step >= {first}"
    )
    samples, of_step = _samples(run), _chances(run)
    chance, group = ["NULL"], "t.uid"
    if samples is not None:
        rows = rows.join(samples.set_alias("s"), "t.uid = s.sample", "left")
        chance, group = [_valid("s.chance")], "coalesce(s.grp_, t.uid)"
    if of_step is not None:
        rows = rows.join(of_step.set_alias("c"), "t.step = c.step_", "left")
        chance.append(_valid("c.of_step"))
    picked = ", ".join(f"t.{name}" for name in wanted)
    rows = rows.project(f"{picked}, 1.0 / coalesce({', '.join(chance)}, 1.0) AS w, {group} AS grp")
    steps = [
        int(s) for (s,) in _asked(rows, "r", "SELECT DISTINCT step FROM r ORDER BY 1").fetchall()
    ]
    if not steps:
        return None
    grouped = samples is not None and bool(
        _asked(samples, "s", "SELECT bool_or(grp_ <> sample) FROM s").fetchall()[0][0]
    )
    return TrainRows(rows, steps, grouped)


def _valid(chance: str) -> str:
    """The chance where it is one, else NULL."""
    return f"CASE WHEN {chance} > 0 AND {chance} <= 1 THEN {chance} END"


def _chances(run: Run) -> duckdb.DuckDBPyRelation | None:
    """step_, of_step: inclusion probability of a step's rows that have no sample."""
    try:
        if "inclusion_prob" not in run.columns("steps"):
            return None
    except RunError:  # nothing of steps/ is on disk yet
        return None
    sql = "SELECT step AS step_, any_value(inclusion_prob) AS of_step FROM steps GROUP BY 1"
    return _asked(run.steps(columns=["step", "inclusion_prob"], lazy=True), "steps", sql)


def _samples(run: Run) -> duckdb.DuckDBPyRelation | None:
    """sample (uid), grp_, chance of every response; None where there are none."""
    try:
        have = run.columns("samples")
    except RunError:
        return None
    if "uid" not in have:
        return None
    group = '"group"' if "group" in have else "uid"
    chance = "inclusion_prob" if "inclusion_prob" in have else "NULL::FLOAT"
    sql = f"SELECT uid AS sample, any_value({group}) AS grp_, any_value({chance}) AS chance"
    return _asked(run.samples(lazy=True), "responses", f"{sql} FROM responses GROUP BY uid")


@dataclass(frozen=True)
class KeyedSums:
    """Sums (S, G, K, C) of C columns by key, and how to resample them.

    ratio(above, below): value and interval of sum(above) / sum(below) for each key, where `below`
    may be a column or the same total for all keys.
    """

    keys: list[Any]
    columns: dict[str, int]
    values: Array
    draws: Draws

    @classmethod
    def of(
        cls, data: pd.DataFrame, key: str, columns: Sequence[str], steps: Sequence[int]
    ) -> KeyedSums:
        """From TrainRows.sums over `steps`; key: the column that tells rows of a step apart."""
        keys = sorted(data[key].unique())
        step = np.searchsorted(np.asarray(steps), data["step"].to_numpy())
        # Prompt groups of a step as 0..G-1, whatever their ids are.
        pairs = pd.DataFrame({"step": step, "grp": data["grp"].to_numpy()})
        place = pairs.groupby("step")["grp"].transform(lambda g: pd.factorize(g)[0]).to_numpy(int)
        groups = np.ones(len(steps), np.int64)
        np.maximum.at(groups, step, place + 1)
        values = np.zeros((len(steps), int(groups.max()), len(keys), len(columns)))
        k = np.searchsorted(np.asarray(keys), data[key].to_numpy())
        values[step, place, k] = data[list(columns)].to_numpy(np.float64)
        return cls(keys, {c: i for i, c in enumerate(columns)}, values, draw(groups))

    def total(self, column: str) -> Array:
        """Sum over steps and groups, by key: (K,)."""
        return self.values[..., self.columns[column]].sum(axis=(0, 1))

    def ratio(self, above: str, below: str, of_all: bool = False) -> tuple[Array, Array, Array]:
        """(value, low, high), each (K,); of_all: over the total of `below` of all keys."""
        a = self.values[..., self.columns[above]]
        b = self.values[..., self.columns[below]]
        if of_all:
            b = np.repeat(b.sum(axis=2, keepdims=True), a.shape[2], axis=2)
        value = ratio(a.sum(axis=(0, 1)), b.sum(axis=(0, 1)))
        up, down = (self.draws.totals(self.draws.pool(x)) for x in (a, b))  # (B, K)
        replicates = ratio(up, down)
        steps = (b.sum(axis=1) > 0).sum(axis=0)
        ends = [self.draws.interval(replicates[:, k], int(steps[k])) for k in range(a.shape[2])]
        low, high = np.array(ends).reshape(-1, 2).T
        return value, low, high

    def without(self, step: NDArray[np.bool_]) -> KeyedSums:
        """The same sums of these steps (S,) alone."""
        values = self.values[step]
        groups = np.maximum((values.any(axis=(2, 3))).sum(axis=1), 1)
        return KeyedSums(self.keys, self.columns, values, draw(groups.astype(np.int64)))


def banded(name: str, found: tuple[Array, Array, Array]) -> dict[str, Array]:
    """{name, name_lo, name_hi} of what KeyedSums.ratio returns."""
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), found, strict=True))
