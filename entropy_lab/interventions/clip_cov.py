"""Clip-Cov: drop a few random tokens of high covariance (2505.22617)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from entropy_lab.interventions.base import Clipped, Scope
from entropy_lab.interventions.selection import choose, share_count
from entropy_lab.predictors.cov import score_cov
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class ClipCov(Clipped):
    """Zero the loss of max(1, floor(ratio N)) random tokens with lb < cov < ub.

    cov = (A - mean A)(logp - mean logp) over the scope's N valid tokens; tokens that the ratio
    clip already stops are never drawn; dropped tokens stay in the denominator. The draw is a hash
    of (seed, step, uid, position). The authors' scripts also set both clips to 1; verl keeps them
    and works per micro-batch. arXiv 2505.22617. Raises ConfigError for a ratio outside (0, 1] or
    lb >= ub.
    """

    name: ClassVar[str] = "clip_cov"
    source: ClassVar[str] = "arXiv 2505.22617"

    ratio: float = 2e-4
    lb: float = 1.0
    ub: float = 5.0
    scope: Scope = "minibatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("ratio", 0 < self.ratio <= 1, "a share of the tokens in (0, 1], e.g. 2e-4")
        self._check("lb", self.lb < self.ub, f"a number below ub = {self.ub!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp"})

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """GRPO's clip, without the dual clip, on every token that was not drawn."""
        known = self._stats(stats)
        cov = score_cov(batch.advantage, known.logp, batch.mask)  # (B, T)
        candidates = batch.mask & (cov > self.lb) & (cov < self.ub) & ~self._beyond(batch, known)
        selected = choose(batch, candidates, share_count(self.ratio, batch.mask))
        return self._plan(
            mask=batch.mask & ~selected,
            selected=selected,
            omega=cov,
            scalars={"selected": float(selected.sum()), "candidates": float(candidates.sum())},
        )
