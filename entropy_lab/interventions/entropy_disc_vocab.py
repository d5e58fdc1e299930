"""Clip_V: mask pushed-down tokens whose discriminant is far from the vocabulary's (2602.03392)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entropy_lab.interventions.base import RolloutScope, State
from entropy_lab.interventions.control import valid_std
from entropy_lab.interventions.entropy_disc_batch import SMALLEST_DEVIATION
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.interventions.selection import share_count
from entropy_lab.stats import entropy_slopes
from entropy_lab.types import Normaliser, TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class EntropyDiscVocab(Grpo):
    """Mask the tokens with A < 0 and D > mu sigma(D), D = E[S] - S_a, the largest D first.

    At most max(1, floor(max_share N)) of the rollout's (or the scope's) N valid tokens, and those
    that tie with the last of them. E[S] = sum pi S over the vocabulary; dH = lr c D (Theorem 3.3),
    so pushing them down lowers the entropy. sigma is the population deviation. In scope rollout
    the thresholds are those of the policy that generated, D that of the present one; in the first
    minibatch the two are one. Masked tokens leave the denominator; the released code takes tokens
    with A = 0 and such a D out of it as well. arXiv 2602.03392, code in
    agentscope-ai/Trinity-RFT. Raises ConfigError for a negative mu or a max_share outside (0, 1].
    """

    name: ClassVar[str] = "entropy_disc_vocab"
    source: ClassVar[str] = "arXiv 2602.03392"

    mu: float = 8.5
    max_share: float = 1e-4
    normaliser: Normaliser = "selected_mean"
    scope: RolloutScope = "rollout"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("mu", 0 <= self.mu < float("inf"), "a number of deviations >= 0, e.g. 8.5")
        self._check("max_share", 0 < self.max_share <= 1, "a share in (0, 1], e.g. 1e-4")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp", "entropy", "m0", "m1"})

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """disc_std: sigma(D); disc_cut: the smallest D that is masked."""
        score = self._distance(batch, self._stats(stats, "begin_rollout"))
        return {**state, **self._limits(batch, score)}

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """GRPO's plan without the masked tokens."""
        score = self._distance(batch, self._stats(stats))  # (B, T)
        if self.scope == "rollout":
            limits = self._started(batch, stats, state)
        else:
            limits = self._limits(batch, score)
        sigma, cut = (self._recall(limits, key) for key in ("disc_std", "disc_cut"))
        selected = self._candidates(batch, score, sigma) & (score >= cut)
        return self._plan(
            mask=batch.mask & ~selected,
            selected=selected,
            omega=score,
            scalars={"selected": float(selected.sum())},
        )

    def _distance(self, batch: TokenBatch, stats: TokenStats) -> Tensor:
        """D, (B, T), 0 outside the mask."""
        surprise, mean_surprise, _ = entropy_slopes(stats)
        return torch.where(batch.mask, mean_surprise - surprise, 0.0)

    def _candidates(self, batch: TokenBatch, score: Tensor, sigma: float) -> Tensor:
        if not sigma > SMALLEST_DEVIATION:
            return torch.zeros_like(batch.mask)
        return batch.mask & (batch.advantage < 0) & (score > self.mu * sigma)

    def _limits(self, batch: TokenBatch, score: Tensor) -> State:
        sigma = valid_std(score, batch.mask)
        found = score[self._candidates(batch, score, sigma)]
        limit = share_count(self.max_share, batch.mask)
        cut = float(found.topk(limit).values[-1]) if found.numel() > limit else self.mu * sigma
        return {"disc_std": sigma, "disc_cut": cut}
