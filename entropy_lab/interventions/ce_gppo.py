"""CE-GPPO: clipped tokens keep a bounded gradient (2509.20712)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class CeGppo(Grpo):
    """GRPO whose clipped tokens keep the gradient beta * bound * A instead of none.

    beta1 (1 - clip_low) (r / sg r) A where A < 0 and r < 1 - clip_low, beta2 (1 + clip_high)
    (r / sg r) A where A > 0 and r > 1 + clip_high, r A elsewhere; then the dual clip. Both betas 1
    is GPPO (2508.07629). arXiv 2509.20712. Raises ConfigError for a negative or infinite beta.
    """

    name: ClassVar[str] = "ce_gppo"
    source: ClassVar[str] = "arXiv 2509.20712"

    beta1: float = 0.75
    beta2: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("beta1", "beta2"):
            ok = 0 <= getattr(self, field) < float("inf")
            self._check(field, ok, "a finite number >= 0 (0: no gradient beyond the clip)")

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """GRPO's plan with beyond_low = beta1 and beyond_high = beta2."""
        return self._plan(beyond_low=self.beta1, beyond_high=self.beta2)
