"""An advantage that grows with the entropy of the token (2506.14758)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class EntropyAdvantage(ClipHigher):
    """Clip-Higher on A + min(alpha H, |A| / kappa), with H detached, token by token.

    The bonus stays below |A|, so the sign of A holds and the new advantage is A times the weight
    1 + min(alpha H, |A| / kappa) / A > 0, which the clips commute with; where A = 0 nothing is
    added. alpha 0.4 is for GRPO (0.1 for PPO). arXiv 2506.14758, whose code is not public: formula
    and values come from re-implementations and summaries. Raises ConfigError for a negative alpha
    or a kappa <= 1.
    """

    name: ClassVar[str] = "entropy_advantage"
    source: ClassVar[str] = "arXiv 2506.14758"
    unconfirmed: ClassVar[str] = (
        "no code of the authors: alpha 0.4, kappa 2 and the Clip-Higher base are those of "
        "re-implementations and summaries of the paper"
    )

    alpha: float = 0.4
    kappa: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("alpha", 0 <= self.alpha < float("inf"), "a finite number >= 0, e.g. 0.4")
        self._check("kappa", self.kappa > 1, "a number > 1, so that no advantage changes its sign")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """Clip-Higher's plan with the weight of the shaped advantage, 1 where A = 0."""
        entropy, advantage = self._stats(stats).entropy, batch.advantage
        bonus = torch.minimum(self.alpha * entropy, advantage.abs() / self.kappa)  # (B, T)
        shaped = batch.mask & (advantage != 0)
        weight = torch.where(shaped, 1 + bonus / advantage, 1.0)
        count = batch.mask.sum().clamp(min=1)
        return self._plan(
            weight=weight,
            scalars={"bonus_mean": float(torch.where(shaped, bonus, 0.0).sum() / count)},
        )
