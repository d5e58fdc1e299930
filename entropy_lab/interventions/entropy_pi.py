"""EntroPIC: a PI controller of the entropy on almost certain tokens (2511.15248)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from entropy_lab.interventions.base import Scope, State
from entropy_lab.interventions.control import valid_mean
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class EntropyPi(Grpo):
    """Where pi > probability: weight 1 + alpha for A > 0 and 1 - alpha for A < 0.

    alpha = clip(k_p e + k_i (sum of e over earlier steps), -1, 1), e = (mean entropy of the scope's
    tokens) - target: too much entropy reinforces what is certain, too little lets go of it. mean:
    "all" averages the added term over all tokens, as the rest of the loss; "high" over the tokens
    with pi > probability alone (alpha N / N_high), as the released code, which also adds it
    without the ratio clip and per micro-batch. arXiv 2511.15248, code in yk7333/EntroPIC. Raises
    ConfigError for gains, target or probability out of range.
    """

    name: ClassVar[str] = "entropy_pi"
    source: ClassVar[str] = "arXiv 2511.15248"

    target: float = 0.1
    k_p: float = 1.0
    k_i: float = 0.01
    probability: float = 0.95
    mean: Literal["all", "high"] = "all"
    scope: Scope = "minibatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("target", 0 <= self.target < math.inf, "an entropy >= 0 in nats, e.g. 0.1")
        for field in ("k_p", "k_i"):
            self._check(field, 0 <= getattr(self, field) < math.inf, "a finite gain >= 0")
        self._check("probability", 0 < self.probability < 1, "a number in (0, 1), e.g. 0.95")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp", "entropy"})

    def initial_state(self) -> State:
        """integral: the sum of e over the steps so far."""
        return {"integral": 0.0}

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """GRPO's plan with the controller's weights."""
        known = self._stats(stats)
        integral = self._recall(self._started(batch, stats, state), "integral")
        alpha = self.k_p * self._error(batch, known) + self.k_i * integral
        alpha = min(max(alpha, -1.0), 1.0)
        high = batch.mask & (known.logp > math.log(self.probability))
        share = 1.0 if self.mean == "all" else int(batch.mask.sum()) / max(1, int(high.sum()))
        sign = torch.where(high, batch.advantage.sign(), 0.0)  # (B, T)
        return self._plan(
            weight=1 + alpha * share * sign,
            selected=high & (sign != 0),
            scalars={"alpha": alpha},
        )

    def end_step(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """The step's e joins the integral."""
        error = self._error(batch, self._stats(stats, "end_step"))
        return {**state, "integral": state["integral"] + error}

    def _error(self, batch: TokenBatch, stats: TokenStats) -> float:
        """e; 0 for a batch without a token."""
        return valid_mean(stats.entropy, batch.mask) - self.target if batch.mask.any() else 0.0
