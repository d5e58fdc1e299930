"""A multiplier on the tokens that lower entropy, chosen so that the step meets a target (ours)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.interventions.influence_steer import measured_influence
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class EntropyTarget(ClipHigher):
    """Weight lambda in [0, lambda_max] on the tokens whose influence_marginal is below 0.

    lambda is such that the first-order change of mean entropy, G . delta(lambda), of the step that
    the optimizer is about to take (preconditioning, momentum, decay and clipping included) equals
    `target`, nats; the nearest end of the interval where the target is out of reach. aim
    "eventual": what the step's own gradient will have done once momentum has passed it on,
    influence / (1 - beta1), plus the decay (with curvature "ignored"). The search takes no pass;
    curvature "measured" spends one forward, on the weights that the step would reach, and takes
    what first order misses there off the target.
    The clip is Clip-Higher's. Raises ConfigError for values outside their range.
    """

    name: ClassVar[str] = "entropy_target"
    source: ClassVar[str] = "entropy-lab"

    target: float = -1e-3
    lambda_max: float = 2.0
    trials: int = 3
    aim: Literal["step", "eventual"] = "step"
    curvature: Literal["ignored", "measured"] = "measured"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("target", math.isfinite(self.target), "a finite change in nats, e.g. -1e-3")
        self._check("lambda_max", 0 < self.lambda_max < math.inf, "a finite weight > 0, e.g. 2")
        self._check("trials", self.trials >= 1, "at least 1, e.g. 3")
        self._check(
            "curvature",
            self.curvature == "ignored" or self.aim == "step",
            "ignored with aim 'eventual': only the step at hand can be measured",
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"influence_marginal"})

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """The plan at state["dose"], 1 where it is not chosen yet; ValueError without influence."""
        dose = float((state or {}).get("dose", 1.0))
        lowers = measured_influence(self.name, batch) < 0
        weight = torch.ones_like(batch.old_logp).masked_fill(lowers, dose)
        return self._plan(weight=weight, selected=lowers & batch.mask, scalars=dict(state or {}))

    def solve(
        self, predicted: Callable[[float], float], measured: Callable[[float], float] | None = None
    ) -> dict[str, float]:
        """dose with predicted(dose) = target, by at most `trials` secant steps.

        They start from whichever of [0, 1] and [1, lambda_max] the target lies in. measured: the
        change of mean entropy that a dose really brings, asked for once where `curvature` says so.
        Returns dose, predicted, at_0, at_1 and at_max (the values there), feasible (1 or 0).
        """
        found = self._solve(predicted)
        if self.curvature == "ignored" or measured is None:
            return found
        missed = measured(found["dose"]) - found["predicted"]
        found = self._solve(lambda dose: predicted(dose) + missed)
        return {**found, "missed": missed}

    def _solve(self, predicted: Callable[[float], float]) -> dict[str, float]:
        doses = sorted({0.0, min(1.0, self.lambda_max), self.lambda_max})
        values = [predicted(dose) for dose in doses]
        found = {"at_0": values[0], "at_1": values[1], "at_max": values[-1]}
        gaps = [value - self.target for value in values]
        nearest = min(range(len(doses)), key=lambda i: abs(gaps[i]))
        dose, value = doses[nearest], values[nearest]
        bracket = next((i for i in range(len(doses) - 1) if gaps[i] * gaps[i + 1] <= 0), None)
        if bracket is not None and gaps[nearest] != 0:
            dose, value = self._secant(predicted, doses[bracket:], gaps[bracket:])
        feasible = float(bracket is not None)
        return {"dose": dose, "predicted": value, **found, "feasible": feasible}

    def _secant(
        self, predicted: Callable[[float], float], doses: list[float], gaps: list[float]
    ) -> tuple[float, float]:
        """(dose, predicted) after at most `trials` steps in the bracket doses[0], doses[1]."""
        low, high, a, b, side = doses[0], doses[1], gaps[0], gaps[1], 0
        dose, value = low, a + self.target
        for _ in range(self.trials):
            dose = low - a * (high - low) / (b - a)
            value = predicted(dose)
            c = value - self.target
            if abs(c) <= 1e-3 * abs(self.target):
                break
            # Halving the end that stays (Illinois) keeps a curved function from creeping.
            if a * c < 0:
                high, b = dose, c
                a, side = (a / 2 if side < 0 else a), -1
            else:
                low, a = dose, c
                b, side = (b / 2 if side > 0 else b), 1
        return dose, value
