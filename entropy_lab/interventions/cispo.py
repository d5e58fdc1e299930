"""CISPO: the ratio is clipped as a weight, and no token loses its gradient (2506.13585)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from entropy_lab.interventions.base import Clipped
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class Cispo(Clipped):
    """Maximise sg(clip(r, 1 - clip_low, 1 + clip_high)) A logp on all tokens.

    clip_low 10 is no lower bound, as in the source; it gives no clip_high, 0.2 is verl's.
    arXiv 2506.13585. Raises ConfigError for a dual clip, which this loss does not have.
    """

    name: ClassVar[str] = "cispo"
    source: ClassVar[str] = "arXiv 2506.13585; verl"

    clip_low: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        no_dual_clip = self.dual_clip == float("inf")
        self._check("dual_clip", no_dual_clip, "inf: clip_high already bounds both signs of A")

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """The clip on both sides, whatever the sign of A."""
        return self._plan(both_sides=True)
