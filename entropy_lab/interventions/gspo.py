"""GSPO: one ratio for the whole sequence (2507.18071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from entropy_lab.interventions.base import Clipped
from entropy_lab.types import Normaliser, TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class Gspo(Clipped):
    """PPO's clipped loss with the geometric mean of a response's ratios for each of its tokens.

    s = exp(mean (logp - old_logp)) over the response, with the gradient of the token's own logp
    (GSPO-token); clip 3e-4 and 4e-4, no dual clip; the mean over responses. arXiv 2507.18071.
    """

    name: ClassVar[str] = "gspo"
    source: ClassVar[str] = "arXiv 2507.18071"

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    normaliser: Normaliser = "seq_mean"

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """The clip on the ratio of the sequence."""
        return self._plan(ratio_level="sequence")
