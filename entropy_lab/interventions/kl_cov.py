"""KL-Cov: hold the tokens of highest covariance near the old policy (2505.22617)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from entropy_lab.interventions.base import Method, Scope
from entropy_lab.interventions.selection import choose, share_count
from entropy_lab.predictors.cov import score_cov
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class KlCov(Method):
    """Add k |logp - old_logp| to the loss of the max(1, floor(ratio N)) tokens of highest cov.

    cov = (A - mean A)(logp - mean logp) over the scope's N valid tokens. No ratio clip at all.
    Inert exactly on-policy, where the added term has gradient 0. ratio: 2e-3 is the authors' 7B
    script, 2e-4 their 32B script and verl. arXiv 2505.22617. Raises ConfigError for a ratio
    outside (0, 1] or a negative k.
    """

    name: ClassVar[str] = "kl_cov"
    source: ClassVar[str] = "arXiv 2505.22617"

    k: float = 1.0
    ratio: float = 2e-3
    scope: Scope = "minibatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("k", 0 <= self.k < float("inf"), "a finite number >= 0, e.g. 1.0")
        self._check("ratio", 0 < self.ratio <= 1, "a share of the tokens in (0, 1], e.g. 2e-3")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp"})

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """The unclipped loss everywhere, and abs_kl_coef = k on the selected tokens."""
        cov = score_cov(batch.advantage, self._stats(stats).logp, batch.mask)  # (B, T)
        selected = choose(batch, batch.mask, share_count(self.ratio, batch.mask), score=cov)
        threshold = float(cov[selected].min()) if selected.any() else math.nan
        return self._plan(
            abs_kl_coef=self.k * selected.to(cov.dtype),
            selected=selected,
            omega=cov,
            scalars={"selected": float(selected.sum()), "cov_threshold": threshold},
        )
