"""A fixed entropy bonus on GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class EntropyBonus(Grpo):
    """GRPO with L -= beta * (mean entropy); beta has no default, a negative one lowers entropy.

    Raises ConfigError where beta is not finite.
    """

    name: ClassVar[str] = "entropy_bonus"
    source: ClassVar[str] = "entropy-regularised policy gradient; beta is the user's"

    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("beta", abs(self.beta) < float("inf"), "a finite number, e.g. 0.001")

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """GRPO's plan with entropy_coef = beta."""
        return self._plan(entropy_coef=self.beta, scalars={"entropy_coef": self.beta})
