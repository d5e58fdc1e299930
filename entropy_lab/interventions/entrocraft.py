"""Entrocraft: reject responses that push the entropy out of a band (2604.26326)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entropy_lab.interventions.base import State
from entropy_lab.interventions.control import valid_mean
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import Normaliser, TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class Entrocraft(Grpo):
    """Keep a response iff m A >= 0, m = 1[H > high] - 1[H < low], H the rollout's mean entropy.

    low and high go linearly from *_start to *_end over total_steps optimizer steps, and stay.
    Rejected responses leave the denominator (Equation 5). The band is the released script's; the
    paper's long runs end at (0.1, 0.2). The released code also takes the bare reward as advantage
    while H is outside the band, which Algorithm 1 does not. arXiv 2604.26326, code in
    lblaoke/entrocraft. Raises ConfigError for a band or a number of steps out of range.
    """

    name: ClassVar[str] = "entrocraft"
    source: ClassVar[str] = "arXiv 2604.26326"

    total_steps: int
    low_start: float = 0.6
    low_end: float = 0.4
    high_start: float = 0.7
    high_end: float = 0.5
    normaliser: Normaliser = "selected_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("total_steps", self.total_steps > 0, "the optimizer steps of the run, above 0")
        for end in ("start", "end"):
            low = getattr(self, f"low_{end}")
            self._check(
                f"high_{end}",
                0 <= low <= getattr(self, f"high_{end}") < float("inf"),
                f"a finite entropy in nats >= low_{end} = {low!r} >= 0",
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """direction: m of the rollout; entropy, low and high: what it came from."""
        entropy = valid_mean(self._stats(stats, "begin_rollout").entropy, batch.mask)
        done = min(1.0, batch.step / self.total_steps)
        low = self.low_start + (self.low_end - self.low_start) * done
        high = self.high_start + (self.high_end - self.high_start) * done
        direction = float(entropy > high) - float(entropy < low)
        return {**state, "direction": direction, "entropy": entropy, "low": low, "high": high}

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """GRPO's plan without the rejected responses."""
        direction = self._recall(self._started(batch, stats, state), "direction")
        rejected = batch.mask & (direction * batch.advantage < 0)  # (B, T)
        return self._plan(
            mask=batch.mask & ~rejected,
            selected=rejected,
            scalars={"rejected": float(rejected.any(1).sum())},
        )
