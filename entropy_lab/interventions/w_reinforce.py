"""Weighted REINFORCE, and its positive and its negative half alone (2506.01347)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from entropy_lab.advantages import outcome
from entropy_lab.interventions.base import Clipped
from entropy_lab.types import Normaliser, TokenBatch, TokenPlan, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WReinforce(Clipped):
    """No baseline and no std: A = lambda_positive for correct responses, -1 for wrong ones.

    polarity "positive" (PSR) or "negative" (NSR) keeps the correct or the wrong responses alone,
    with A = 1 or -1; the others leave the loss and its denominator, for which the normaliser is
    selected_mean (a plain token mean where both stay). PPO's clip at 0.2, no dual clip.
    arXiv 2506.01347. Raises ConfigError for a lambda_positive below 0, and for another normaliser
    with one polarity.
    """

    name: ClassVar[str] = "w_reinforce"
    source: ClassVar[str] = "arXiv 2506.01347"

    lambda_positive: float = 0.1
    polarity: Literal["both", "positive", "negative"] = "both"
    normaliser: Normaliser = "selected_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0 <= self.lambda_positive < float("inf")
        self._check("lambda_positive", ok, "a finite weight >= 0, e.g. 0.1")
        ok = self.polarity == "both" or self.normaliser == "selected_mean"
        self._check("normaliser", ok, "selected_mean: dropped responses leave the denominator")

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """lambda_positive and -1, or 1 and 0, or 0 and -1; (B, T), 0 outside the mask.

        Raises ValueError where batch.reward is None or holds anything but 1 and 0 or -1.
        """
        (reward,) = self._read(batch, "reward")
        correct, wrong = {
            "both": (self.lambda_positive, -1.0),
            "positive": (1.0, 0.0),
            "negative": (0.0, -1.0),
        }[self.polarity]
        return self._per_token(batch, outcome(reward.to(batch.old_logp.dtype), correct, wrong))

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """PPO's plan on the kept polarity, the sign of the advantage; the rest is `selected`."""
        if self.polarity == "both":
            return self._plan()
        sign = 1.0 if self.polarity == "positive" else -1.0
        kept = batch.mask & (sign * batch.advantage > 0)
        dropped = batch.mask & ~kept
        return self._plan(mask=kept, selected=dropped, scalars={"selected": float(dropped.sum())})
