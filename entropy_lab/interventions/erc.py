"""Entropy ratio clipping (2512.05591)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats

# As in the released code: keeps positions of zero entropy at a ratio of 1.
_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class Erc(ClipHigher):
    """Clip-Higher where 1 - entropy_low < H / H_old < 1 + entropy_high; no gradient elsewhere.

    H / H_old is (H + 1e-8) / (H_old + 1e-8) of each token. Stopped tokens stay in the denominator;
    their value, a constant that the source detaches, is left out of the loss. arXiv 2512.05591.
    Raises ConfigError for a bound that is not above 0.
    """

    name: ClassVar[str] = "erc"
    source: ClassVar[str] = "arXiv 2512.05591"

    entropy_low: float = 0.05
    entropy_high: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("entropy_low", "entropy_high"):
            self._check(field, getattr(self, field) > 0, "a number > 0 (inf: no bound), e.g. 0.05")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy", "old_entropy"})

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """Clip-Higher's plan without the stopped tokens, which are `selected`."""
        entropy = self._stats(stats).entropy
        if batch.old_entropy is None:
            raise ValueError(
                "erc reads batch.old_entropy, which is None: pass the (B, T) entropy of the "
                "policy that generated"
            )
        ratio = (entropy + _EPS) / (batch.old_entropy + _EPS)  # (B, T)
        inside = (ratio > 1 - self.entropy_low) & (ratio < 1 + self.entropy_high)
        stopped = batch.mask & ~inside
        return self._plan(
            mask=batch.mask & inside,
            selected=stopped,
            scalars={"selected": float(stopped.sum())},
        )
