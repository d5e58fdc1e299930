"""Quadrant: one free weight for each sign region of the entropy change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from entropy_lab.interventions.grpo import Grpo
from entropy_lab.stats import QUADRANTS, quadrant
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class Quadrant(Grpo):
    """GRPO with a weight for each sign region of A and logp + H; 1 everywhere is GRPO itself.

    To first order pos_likely (A > 0, logp > -H) and neg_unlikely (A < 0, logp <= -H) lower the
    entropy, pos_unlikely and neg_likely raise it; see entropy_lab.stats.quadrant. Tokens with
    A = 0 keep the weight 1. Raises ConfigError for a weight that is negative or not finite.
    """

    name: ClassVar[str] = "quadrant"
    source: ClassVar[str] = "this project"

    pos_likely: float = 1.0
    pos_unlikely: float = 1.0
    neg_likely: float = 1.0
    neg_unlikely: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for region in QUADRANTS[:4]:
            ok = 0 <= getattr(self, region) < math.inf
            self._check(region, ok, "a finite weight >= 0 (0 drops the region, 1 leaves it alone)")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp", "entropy"})

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """GRPO's plan with the weight of each token's region."""
        known = self._stats(stats)
        region = quadrant(batch.advantage, known.logp, known.entropy).long()  # (B, T)
        weights = [getattr(self, name) for name in QUADRANTS[:4]] + [1.0]
        weight = torch.tensor(weights, dtype=known.logp.dtype, device=region.device)[region]
        weight = torch.where(batch.mask, weight, 1.0)
        count = batch.mask.sum().clamp(min=1)
        mean = torch.where(batch.mask, weight, 0.0).sum() / count
        return self._plan(weight=weight, scalars={"weight_mean": float(mean)})
