"""The error budget: what each rung of the ladder explains of dH, and what the next one adds.

Closed forms are in another unit than dH under a preconditioner (slopes of 1e5), so a difference
of two forms means nothing as logged. Every form x is scaled by its own least-squares factor
b = cov(x, dH) / var x of the step: b x then explains the share PCC^2 of the variance of dH, and

    var(b' x' - b x) / var dH = PCC'^2 + PCC^2 - 2 PCC' PCC corr(x, x')

is the size of the difference between two rungs. Where it is larger than PCC'^2 - PCC^2, the lower
rung has errors that the upper one does not keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.bootstrap import Draws, draw, unit
from entropy_lab.analysis.deep import DeepRows
from entropy_lab.analysis.statistics import pearson, stacked
from entropy_lab.analysis.tables import BESIDE, LADDER, PREDICTOR_PREFIX, frame

Array = NDArray[np.float64]


@dataclass
class BudgetSums:
    """Pair sums per deep step and prompt group: of each form with dH, and of each rung pair.

    forms: the rungs that the log has, lowest first, then the forms beside the ladder.
    """

    forms: list[str]
    rungs: int
    steps: int = 0
    rows: list[int] = field(default_factory=list)
    with_dh: list[Array] = field(default_factory=list)  # (groups, forms, 6)
    between: list[Array] = field(default_factory=list)  # (groups, rungs - 1, 6)

    @classmethod
    def of(cls, predictors: list[str]) -> BudgetSums:
        """Empty sums for a log with these predictors."""
        rungs = [name for name in LADDER if name in predictors]
        return cls([*rungs, *(name for name in BESIDE if name in predictors)], len(rungs))

    def add(self, step: DeepRows) -> None:
        """Take in one step; a step where a form is missing is left out for all of them."""
        values = [step.columns[PREDICTOR_PREFIX + name] for name in self.forms]
        if not values or not all(np.isfinite(x).all() for x in values):
            return
        y = step.columns["dH"]
        sums = np.stack([step.pair_sums(x, y) for x in values], axis=1)
        pairs = zip(values[: self.rungs - 1], values[1 : self.rungs], strict=True)
        if not np.isfinite(pearson(sums.sum(axis=0))).all():
            return
        self.rows.append(len(y))
        self.with_dh.append(sums)
        self.between.append(
            np.stack([step.pair_sums(x, above) for x, above in pairs], axis=1)
            if self.rungs > 1
            else np.zeros((step.groups, 0, 6))
        )

    def table(self, grouped: bool, seed: int = 0) -> pd.DataFrame:
        """Rows of the table `budget`, lowest rung first, without the run's name.

        Empty without a step that has every form; grouped: prompt groups are known.
        """
        if not self.rows or not self.rungs:
            return frame("budget", [])
        sums, groups = stacked(self.with_dh)
        draws = draw(groups, seed)
        ladder = _Ladder(sums, stacked(self.between)[0], draws)
        rungs, beside = self.forms[: self.rungs], self.forms[self.rungs :]
        rows: list[dict] = [
            {"form": name, "rung": k + 1, **ladder.form(k), **ladder.added(k)}
            for k, name in enumerate(rungs)
        ]
        rows.append({"form": "dH", "rung": len(rungs) + 1, **ladder.change(len(rungs) - 1)})
        for row, below in zip(rows, ["", *rungs], strict=True):
            row["adds"] = _words(below, row["form"])
        for k, name in enumerate(beside, start=len(rungs)):
            rows.append({"form": name, "rung": 0, "adds": "", **ladder.form(k)})
        n, steps = sum(self.rows), len(self.rows)
        common = {"n": n, "steps": steps, "unit": unit(steps, grouped)}
        return frame("budget", [{**row, **common} for row in rows])


def _words(below: str, name: str) -> str:
    """What `name` takes in beyond `below`, rungs that the log lacks included."""
    order = list(LADDER)
    start = order.index(below) + 1 if below else order.index(name)
    return ", ".join(LADDER[rung] for rung in order[start : order.index(name) + 1])


@dataclass(frozen=True)
class _Ladder:
    """Correlations of forms with dH (S, G, forms, 6) and of neighbours (S, G, rungs - 1, 6)."""

    sums: Array
    between: Array
    draws: Draws

    def form(self, k: int) -> dict[str, float]:
        total = self.sums[:, :, k].sum(axis=1)
        value, pool = pearson(total), self._pool(k)
        w, wx, wy, wxx, _, wxy = total.T
        slope = (wxy - wx * wy / w) / (wxx - wx * wx / w)
        return {
            "slope": float(np.median(slope)),
            "pcc": float(np.median(value)),
            **self._band("pcc", self.draws.medians(pool, value)),
            "explained": float(np.mean(value**2)),
            **self._band("explained", self.draws.means(pool**2, value**2)),
        }

    def added(self, k: int) -> dict[str, float]:
        """What rung k explains beyond the one below, which is nothing for the lowest."""
        value, pool = self._explained(k)
        if k == 0:
            return {"added": float(value.mean()), **self._added_band(value, pool)}
        lower, lower_pool = self._explained(k - 1)
        one, two = (pearson(self.sums[:, :, i].sum(axis=1)) for i in (k - 1, k))
        both = pearson(self.between[:, :, k - 1].sum(axis=1))
        return {
            "added": float((value - lower).mean()),
            **self._added_band(value - lower, pool - lower_pool),
            "difference": float(np.mean(one**2 + two**2 - 2 * one * two * both)),
        }

    def change(self, top: int) -> dict[str, float]:
        """dH itself: it adds what the highest rung leaves unexplained."""
        value, pool = self._explained(top)
        rest = 1 - value
        return {
            "slope": 1.0,
            "pcc": 1.0,
            "explained": 1.0,
            "added": float(rest.mean()),
            **self._added_band(rest, 1 - pool),
            "difference": float(rest.mean()),
        }

    def _explained(self, k: int) -> tuple[Array, Array]:
        return pearson(self.sums[:, :, k].sum(axis=1)) ** 2, self._pool(k) ** 2

    def _pool(self, k: int) -> Array:
        return pearson(self.draws.pool(self.sums[:, :, k]))

    def _added_band(self, value: Array, pool: Array) -> dict[str, float]:
        return self._band("added", self.draws.means(pool, value))

    def _band(self, name: str, replicates: Array) -> dict[str, float]:
        low, high = self.draws.interval(replicates, len(self.sums))
        return {f"{name}_lo": low, f"{name}_hi": high}
