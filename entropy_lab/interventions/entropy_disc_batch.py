"""Clip_B: mask pushed-down tokens of low entropy discriminant (2602.03392)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entropy_lab.interventions.base import RolloutScope, State
from entropy_lab.interventions.control import valid_mean, valid_std
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.stats import entropy_slopes
from entropy_lab.types import Normaliser, TokenBatch, TokenPlan, TokenStats

# Below this deviation all discriminants are equal but for rounding, and nothing stands out.
SMALLEST_DEVIATION = 1e-12


@dataclass(frozen=True, kw_only=True)
class EntropyDiscBatch(Grpo):
    """Mask the tokens with A < 0 and S_a - mean S_a < -mu sigma: their push lowers entropy most.

    S_a = pi_a (log pi_a + H) of the policy that generated, dH = -lr c S_a (Theorem 3.2); mean and
    population sigma over all valid tokens of the rollout (or of the scope's batch). Masked tokens
    leave the denominator. arXiv 2602.03392, code in agentscope-ai/Trinity-RFT. Raises ConfigError
    for a negative mu, ValueError where batch.old_entropy is None.
    """

    name: ClassVar[str] = "entropy_disc_batch"
    source: ClassVar[str] = "arXiv 2602.03392"

    mu: float = 2.5
    normaliser: Normaliser = "selected_mean"
    scope: RolloutScope = "rollout"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("mu", 0 <= self.mu < float("inf"), "a number of deviations >= 0, e.g. 2.5")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old_entropy"})

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """disc_mean and disc_std: mean and deviation of S_a over the rollout."""
        return {**state, **self._moments(batch, self._discriminant(batch))}

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """GRPO's plan without the masked tokens."""
        score = self._discriminant(batch)  # (B, T)
        if self.scope == "rollout":
            limits = self._started(batch, stats, state)
        else:
            limits = self._moments(batch, score)
        mean, sigma = (self._recall(limits, key) for key in ("disc_mean", "disc_std"))
        selected = batch.mask & (batch.advantage < 0) & (score - mean < -self.mu * sigma)
        if not sigma > SMALLEST_DEVIATION:
            selected = torch.zeros_like(selected)
        return self._plan(
            mask=batch.mask & ~selected,
            selected=selected,
            omega=score,
            scalars={"selected": float(selected.sum())},
        )

    def _discriminant(self, batch: TokenBatch) -> Tensor:
        """S_a of the policy that generated, (B, T), 0 outside the mask."""
        if batch.old_entropy is None:
            raise ValueError(
                f"{self.name} reads batch.old_entropy, which is None: pass the (B, T) entropy of "
                "the policy that generated"
            )
        none = torch.zeros_like(batch.old_logp)  # S_a reads no moment
        old = TokenStats(batch.old_logp, batch.old_entropy, none, none, none)
        surprise, _, _ = entropy_slopes(old)
        return torch.where(batch.mask, surprise, 0.0)

    @staticmethod
    def _moments(batch: TokenBatch, score: Tensor) -> State:
        return {
            "disc_mean": valid_mean(score, batch.mask),
            "disc_std": valid_std(score, batch.mask),
        }
