"""Each form against dH and against the influence of the token's own push: the table influence.

A method that reweights tokens by a score bets that the score predicts influence_marginal. So the
forms are also judged without the token's push c, that is without advantage, ratio, clip and weight:
what a method knows that looks at the policy alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.bootstrap import Draws, draw, unit
from entropy_lab.analysis.deep import DeepRows
from entropy_lab.analysis.reduce import MIN_ROWS, RANKED_ROWS
from entropy_lab.analysis.statistics import pearson, ranks, ratio, stacked, top_rows
from entropy_lab.analysis.tables import (
    PREDICTOR_PREFIX,
    TARGETS,
    TOP,
    frame,
    ordered_predictors,
)

Array = NDArray[np.float64]

# Last axis of the sums of one score and target: PAIR_SUMS of values, PAIR_SUMS of ranks, then
# equal signs, pairs without a zero, |target| in the score's top rows, in its own top, in all.
_VALUES, _RANKS = slice(0, 6), slice(6, 12)
_EQUAL, _PAIRS, _HELD, _BEST, _ALL = range(12, 17)


def push_free(columns: dict[str, Array], weight: Array) -> dict[str, Array]:
    """What the closed forms say of a token per unit of its push; NaN without m0 and m1.

    cov: -(logp - mean logp). steer: -pi (1 - pi)(log pi + H). discriminant: -S_a.
    softmax: -(S_a - E[S]), S_a = pi (log pi + H), E[S] = m1 + H m0. Columns (n,), nats.
    """
    logp, entropy = columns["logp"], columns["entropy"]
    p = np.exp(logp)
    surprise = p * (logp + entropy)
    nothing = np.full_like(logp, np.nan)
    m0, m1 = (columns.get(name, nothing) for name in ("m0", "m1"))
    return {
        "cov": -(logp - np.average(logp, weights=weight)),
        "steer": -(1 - p) * surprise,
        "discriminant": -surprise,
        "softmax": -(surprise - m1 - entropy * m0),
    }


@dataclass
class InfluenceSums:
    """Sums per deep step and prompt group, by target, of every score."""

    steps: dict[tuple[str, str, str], list[Array]] = field(default_factory=dict)
    rows: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, step: DeepRows) -> None:
        """Take in one step; a score or target that is not finite in it is left out."""
        if len(step.weight) < MIN_ROWS or "influence" not in step.columns:
            return
        scores = {
            ("form", name.removeprefix(PREDICTOR_PREFIX)): x
            for name, x in step.columns.items()
            if name.startswith(PREDICTOR_PREFIX)
        }
        free = push_free(step.columns, step.weight)
        scores |= {("push-free", name): x for name, x in free.items()}
        scores = {key: x for key, x in scores.items() if np.isfinite(x).all()}
        some = step.sample(RANKED_ROWS)
        part = step.only(some)
        ranked = {key: ranks(x[some]) for key, x in scores.items()}
        tops = {key: top_rows(x, TOP) for key, x in scores.items()}
        for target in TARGETS:
            y = step.columns.get(target, np.full(1, np.nan))
            if not np.isfinite(y).all():
                continue
            order, best = ranks(y[some]), top_rows(y, TOP)
            for (kind, name), x in scores.items():
                key = kind, name
                shares = [tops[key] * np.abs(y), best * np.abs(y), np.abs(y)]
                signs = [x * y > 0, x * y != 0]
                sums = [step.pair_sums(x, y), part.pair_sums(ranked[key], order)]
                sums += [step.total(v.astype(np.float64))[:, None] for v in (*signs, *shares)]
                place = target, kind, name
                self.steps.setdefault(place, []).append(np.concatenate(sums, axis=1))
                self.rows[place] = self.rows.get(place, 0) + len(y)

    def table(self, grouped: bool, seed: int = 0) -> pd.DataFrame:
        """Rows of the table `influence`, without the run's name; grouped: groups are known."""
        rows = []
        for target in TARGETS:
            for kind in ("form", "push-free"):
                names = [n for t, k, n in self.steps if (t, k) == (target, kind)]
                for name in ordered_predictors(names):
                    place = target, kind, name
                    sums, groups = stacked(self.steps[place])
                    row = _measures(sums, draw(groups, seed))
                    common = {"target": target, "kind": kind, "predictor": name}
                    common |= {"n": self.rows[place], "steps": len(sums)}
                    rows.append({**common, **row, "unit": unit(len(sums), grouped)})
        return frame("influence", rows)


def _measures(sums: Array, draws: Draws) -> dict[str, float]:
    """Medians over steps with their intervals; ranks and top rows are those of the whole step."""
    total, pool = sums.sum(axis=1), draws.pool(sums)
    out: dict[str, float] = {}
    for name, least, of in (
        ("pcc", -1.0, lambda s: pearson(s[..., _VALUES])),
        ("srcc", -1.0, lambda s: pearson(s[..., _RANKS])),
        ("sign", 0.0, lambda s: ratio(s[..., _EQUAL], s[..., _PAIRS])),
        ("capture", 0.0, lambda s: ratio(s[..., _HELD], s[..., _ALL])),
        ("oracle", 0.0, lambda s: ratio(s[..., _BEST], s[..., _ALL])),
    ):
        value = of(total)
        known = value[np.isfinite(value)]
        out[name] = float(np.median(known)) if len(known) else float("nan")
        low, high = draws.interval(draws.medians(of(pool), value, least), len(known))
        out[f"{name}_lo"], out[f"{name}_hi"] = low, high
    return out
