"""DPPO with the binary total variation as its trust region (2602.04879)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from entropy_lab.interventions.base import Method
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class DppoTv(Method):
    """Maximise sg(min(r, c)) A logp, without the tokens that leave the trust region |dpi| <= delta.

    Dropped is a token with A > 0 and pi - pi_old > delta, or A < 0 and pi_old - pi > delta; it
    stays in the denominator. No ratio clip. c = 20 is verl's; the paper does without it (inf). It
    also takes the sampler itself for pi_old, advantages without a std and a token sum over a
    constant length; here these are what old_logp holds, GRPO's advantage and the normaliser.
    arXiv 2602.04879. Raises ConfigError for a delta or a c out of range.
    """

    name: ClassVar[str] = "dppo_tv"
    source: ClassVar[str] = "arXiv 2602.04879; verl"

    delta: float = 0.15
    c: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("delta", self.delta >= 0, "a number >= 0 (inf: drop none), e.g. 0.15")
        self._check("c", self.c >= 1, "a number >= 1 (inf: no bound on the ratio), e.g. 20.0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp"})

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """The ratio bounded on both signs of A; dropped tokens are `selected`."""
        logp, old = self._stats(stats).logp, batch.old_logp
        away = ((batch.advantage > 0) & (logp > old)) | ((batch.advantage < 0) & (logp < old))
        dropped = batch.mask & away & (self._divergence(logp, old) > self.delta)  # (B, T)
        return self._plan(
            mask=batch.mask & ~dropped,
            clip_high=self.c - 1,
            both_sides=True,
            selected=dropped,
            scalars={"selected": float(dropped.sum())},
        )

    def _divergence(self, logp: Tensor, old_logp: Tensor) -> Tensor:
        """The total variation of "this token or another": |pi - pi_old|, (B, T)."""
        return (logp.exp() - old_logp.exp()).abs()
