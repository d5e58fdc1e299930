"""Which of four factors explains a method's weight: clip, advantage, probability, entropy.

The weight of a token is what the method makes of the plain policy gradient, w = c N / (r A), with
the reference's advantage. Trees on one factor, on all four and on all but one are fitted on every
other step and judged on the rest, so that no share comes from fitting noise; what predicts worse
than the mean explains 0.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.audit.sums import NOTHING, Ledger, Number, ratio
from entropy_lab.analysis.audit.tree import Tree
from entropy_lab.analysis.audit.view import View
from entropy_lab.analysis.audit_tables import FACTORS

Array = NDArray[np.float64]

_ROWS = 2**16  # of all steps together, evenly spaced in each
FEW = 1000  # rows below which the shares are rough
_ROUNDING = 1e-10  # of the squared mean; below it the variance of a weight is rounding
_ALL = tuple(range(len(FACTORS)))
_MODELS = {
    "explained": _ALL,
    **{f"alone_{name}": (i,) for i, name in enumerate(FACTORS)},
    **{f"without_{name}": tuple(j for j in _ALL if j != i) for i, name in enumerate(FACTORS)},
}


@dataclass
class Profile:
    """Evenly spaced rows of all steps: factors (n, 4) and every method's weight (n,)."""

    rows_a_step: int
    factors: list[Array] = field(default_factory=list)
    groups: list[NDArray[np.int64]] = field(default_factory=list)
    chances: list[Array] = field(default_factory=list)
    weights: dict[str, list[Array]] = field(default_factory=dict)

    @classmethod
    def over(cls, steps: int) -> Profile:
        """For a run of so many steps."""
        return cls(max(1, _ROWS // max(1, steps)))

    def add(self, view: View) -> None:
        """Take in one step; tokens whose advantage is 0 have no weight."""
        rows = np.flatnonzero(view.unclipped != 0)
        if len(rows) > self.rows_a_step:
            rows = rows[np.linspace(0, len(rows) - 1, self.rows_a_step).astype(np.int64)]
        a, r = view.advantage[rows], view.ratio[rows]
        # How far the ratio has gone the way that the advantage pushes it: a clip cuts off here.
        gone = np.where(a > 0, r - 1, 1 - r)
        columns = [gone, a, np.exp(view.logp[rows]), view.entropy[rows]]
        self.factors.append(np.stack(columns, axis=1))
        self.groups.append(view.group[rows])
        self.chances.append(view.weight[rows])
        for label, c in view.c.items():
            weight = c[rows] / view.unclipped[rows]
            self.weights.setdefault(label, []).append(weight)

    def shares(self, label: str, ledger: Ledger) -> dict[str, Number]:
        """alone_<factor>, only_<factor> and explained, as shares of the weight's variance.

        NaN where the weight does not vary.
        """
        y = np.concatenate(self.weights[label])
        total = ((y - y.mean()) ** 2).sum() if len(y) else 0.0
        if not np.isfinite(total) or total <= _ROUNDING * len(y) * y.mean() ** 2:
            return {k: NOTHING for k in _MODELS if not k.startswith("without_")}
        x = np.concatenate(self.factors)
        errors = {}
        for name, columns in _MODELS.items():
            predicted = self._predicted(x[:, columns], y)
            errors[name] = (y - predicted) ** 2
        key: Hashable = ("profile", label)
        self._enter(key, ledger, y, [errors[name] for name in _MODELS])
        found = {}
        for i, name in enumerate(_MODELS):
            if name.startswith("without_"):
                only = name.replace("without", "only")
                found[only] = ledger.pooled(key, lambda s, i=i: _share(s, 0) - _share(s, i))
            else:
                found[name] = ledger.pooled(key, lambda s, i=i: _share(s, i))
        return found

    @property
    def rows(self) -> int:
        """How many rows the shares are of."""
        return sum(len(f) for f in self.factors)

    def _predicted(self, x: Array, y: Array) -> Array:
        """Each half by the tree of the other one."""
        half = self._halves()
        out = np.empty(len(y))
        for side in (half, ~half):
            other = ~side
            out[side] = Tree.fit(x[other], y[other]).predict(x[side]) if other.any() else y.mean()
        return out

    def _halves(self) -> NDArray[np.bool_]:
        """Every other step; of a single step, every other prompt group."""
        if len(self.factors) > 1:
            return np.repeat(np.arange(len(self.factors)) % 2 == 0, [len(f) for f in self.factors])
        return self.groups[0] % 2 == 0

    def _enter(self, key: Hashable, ledger: Ledger, y: Array, errors: list[Array]) -> None:
        """Sums of every step and group into the ledger: 1, w, w^2, then the squared errors."""
        columns = np.stack([np.ones_like(y), y, y * y, *errors], axis=1)
        start = 0
        pairs = zip(self.groups, self.chances, ledger.groups, strict=True)
        for group, chance, count in pairs:
            part = columns[start : start + len(group)]
            start += len(group)
            sums = [np.bincount(group, chance * column, count) for column in part.T]
            ledger.put(key, np.stack(sums, axis=-1))


def _share(sums: Array, model: int) -> Array:
    """1 - SSE / SST of sums (..., 3 + models), 0 where the mean would have done better."""
    n, total, square = (sums[..., i] for i in range(3))
    spread = square - ratio(total**2, n)
    varies = np.where(spread > _ROUNDING * square, spread, 0.0)
    return np.clip(1 - ratio(sums[..., 3 + model], varies), 0.0, 1.0)
