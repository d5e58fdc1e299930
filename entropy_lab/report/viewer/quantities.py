"""What a token can be coloured by: names, units and scales of the viewer's quantities."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from entropy_lab.analysis.tables import LADDER, PREDICTOR_PREFIX, TERMS, ordered_predictors

# column: (label, unit, kind of scale, heading). diverging: 0 in the middle; from_zero: 0 at one
# end; weight: 1 in the middle.
PLAIN = {
    "dH": ("dH, measured", "nats", "diverging", "Measured"),
    "entropy": ("entropy before the step", "nats", "from_zero", "Measured"),
    "influence": ("influence", "nats", "diverging", "Influence"),
    "influence_marginal": ("influence_marginal", "nats", "diverging", "Influence"),
    "grad_logp": ("c = −∂L/∂logp", "1/nats", "diverging", "Loss"),
    "weight": ("weight", "", "weight", "Loss"),
}
BESIDE = ("logp",)  # in the numbers of a token, no colour of its own
QUANTILE = 0.98  # of |x|, where a colour is at its strongest


@dataclass(frozen=True)
class Quantity:
    """One entry of "colour by". of: the column of a prediction whose error this is, else ""."""

    name: str
    label: str
    unit: str
    kind: str
    heading: str
    of: str = ""

    def values(self, columns: dict[str, np.ndarray], slope: float) -> np.ndarray:
        """Its values (n,) from the columns; an error is dH - slope * prediction.

        slope: least-squares factor of the step, NaN where there is none (taken as 1).
        """
        if not self.of:
            return columns[self.name]
        return columns["dH"] - (slope if np.isfinite(slope) else 1.0) * columns[self.of]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quantities(columns: list[str]) -> list[Quantity]:
    """Those that a run with these token columns has, in the order of the menu."""
    found = [Quantity(n, *PLAIN[n]) for n in ("dH", "entropy") if n in columns]
    names = [c.removeprefix(PREDICTOR_PREFIX) for c in columns if c.startswith(PREDICTOR_PREFIX)]
    forms = [n for n in ordered_predictors(names) if n not in TERMS]
    forms.sort(key=lambda n: -list(LADDER).index(n) if n in LADDER else 1)
    for form in forms:
        column = PREDICTOR_PREFIX + form
        found.append(Quantity(column, f"predicted by {form}", "nats", "diverging", "Predicted dH"))
    if "dH" in columns:
        for form in forms:
            column = PREDICTOR_PREFIX + form
            name, label = f"error_{form}", f"dH − slope × {form}"
            found.append(Quantity(name, label, "nats", "diverging", "Prediction error", column))
    rest = [n for n in PLAIN if n not in ("dH", "entropy") and n in columns]
    return found + [Quantity(n, *PLAIN[n]) for n in rest]


def kept_columns(columns: list[str]) -> list[str]:
    """The float columns of the log that the viewer holds."""
    shown = [q.name for q in quantities(columns) if not q.of]
    return shown + [n for n in BESIDE if n in columns]
