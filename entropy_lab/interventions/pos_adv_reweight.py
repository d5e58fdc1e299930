"""Positive-advantage reweighting, steered by the entropy (2511.05993)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from entropy_lab.interventions.base import State
from entropy_lab.interventions.control import valid_mean
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class PosAdvReweight(Grpo):
    """GRPO with the loss of A > 0 tokens times lambda, which falls while entropy is low.

    After each step lambda <- clip(lambda - delta if H < threshold else lambda + delta, 0, 1), H the
    mean entropy of the step's tokens before it; the paper's entropy-guided variant. Only notes on
    the paper were at hand. arXiv 2511.05993. Raises ConfigError for values out of range.
    """

    name: ClassVar[str] = "pos_adv_reweight"
    source: ClassVar[str] = "arXiv 2511.05993"
    unconfirmed: ClassVar[str] = (
        "threshold and start, and that lambda moves at each optimizer step by that step's entropy, "
        "are from notes on the paper"
    )

    threshold: float = 0.2
    delta: float = 0.05
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            "threshold", 0 < self.threshold < float("inf"), "an entropy > 0 in nats, e.g. 0.2"
        )
        self._check("delta", 0 < self.delta <= 1, "a step in (0, 1], e.g. 0.05")
        self._check("start", 0 <= self.start <= 1, "a weight in [0, 1], e.g. 0.0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def initial_state(self) -> State:
        """lambda."""
        return {"lambda": self.start}

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """GRPO's plan with weight lambda where A > 0."""
        factor = self._recall(self._started(batch, stats, state), "lambda")
        positive = batch.mask & (batch.advantage > 0)  # (B, T)
        return self._plan(weight=torch.ones_like(batch.old_logp).masked_fill(positive, factor))

    def end_step(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """lambda moves by delta; entropy: the H that moved it."""
        entropy = valid_mean(self._stats(stats, "end_step").entropy, batch.mask)
        moved = state["lambda"] + (-self.delta if entropy < self.threshold else self.delta)
        return {**state, "lambda": min(max(moved, 0.0), 1.0), "entropy": entropy}
