"""Forking tokens: the policy gradient on the tokens of highest entropy alone (2506.01939)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from entropy_lab.interventions.base import Scope
from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.stats.quantile import quantile
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class ForkTokens(ClipHigher):
    """Clip-Higher on the tokens with H >= the (1 - rho) quantile of H; the rest get no gradient.

    The quantile, interpolated as in TRL, is over the scope's N valid tokens; all N stay in the
    denominator. The paper takes the whole batch, TRL the micro-batches of all ranks, ms-swift one
    micro-batch of one rank. arXiv 2506.01939. Raises ConfigError for a rho outside (0, 1].
    """

    name: ClassVar[str] = "fork_tokens"
    source: ClassVar[str] = "arXiv 2506.01939"

    rho: float = 0.2
    scope: Scope = "minibatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("rho", 0 < self.rho <= 1, "a share of the tokens in (0, 1], e.g. 0.2")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """Clip-Higher's plan on the forking tokens; the stopped ones are `selected`."""
        entropy = self._stats(stats).entropy
        valid = entropy[batch.mask]  # (N,)
        threshold = float(quantile(valid, 1 - self.rho)) if valid.numel() else math.nan
        forks = batch.mask & (entropy >= threshold)
        stopped = batch.mask & ~forks
        return self._plan(
            mask=forks,
            selected=stopped,
            scalars={"selected": float(stopped.sum()), "entropy_threshold": threshold},
        )
