"""BAPO: a clip interval that balances positive and negative tokens (2510.18927)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from entropy_lab.interventions.base import Method, Scope, State
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class Bapo(Method):
    """PPO's clipped loss with ratios in [low, high], widened until positive tokens have a say.

    From (low_start, high_start) low rises by low_step up to low_max, then high by high_step up to
    high_max (first "high": the other way round), until
    sum of A>0 of min(r, high) A  >=  balance * |sum of A<0 of max(r, low) A|
    over the scope's tokens. Defaults: config of WooooDyy/BAPO. Algorithm 1 of the paper: first
    "high", high_max 3, low_max 0.9 by 0.02, positive share 0.4 (balance 2/3). dual_clip as in
    verl. arXiv 2510.18927. Raises ConfigError for bounds out of order.
    """

    name: ClassVar[str] = "bapo"
    source: ClassVar[str] = "arXiv 2510.18927"

    low_start: float = 0.6
    low_max: float = 0.8
    low_step: float = 0.05
    high_start: float = 1.2
    high_max: float = 2.0
    high_step: float = 0.05
    balance: float = 1.0
    first: Literal["low", "high"] = "low"
    dual_clip: float = 3.0
    scope: Scope = "minibatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("low_start", 0 <= self.low_start <= 1, "a ratio in [0, 1], e.g. 0.6")
        self._check(
            "low_max",
            self.low_start <= self.low_max <= 1,
            f"a ratio from low_start = {self.low_start!r} to 1",
        )
        self._check("high_start", self.high_start >= 1, "a ratio >= 1, e.g. 1.2")
        self._check(
            "high_max",
            self.high_start <= self.high_max < math.inf,
            f"a finite ratio >= high_start = {self.high_start!r}",
        )
        for field in ("low_step", "high_step"):
            self._check(field, getattr(self, field) > 0, "a step > 0, e.g. 0.05")
        self._check("balance", 0 <= self.balance < math.inf, "a finite number >= 0, e.g. 1.0")
        self._check("dual_clip", self.dual_clip > 1, "a number > 1 (inf: no dual clip)")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp"})

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """The clip of the first pair of bounds that is balanced, or of the last pair."""
        logp = self._stats(stats).logp[batch.mask].double()  # (N,)
        ratio = torch.exp((logp - batch.old_logp[batch.mask]).clamp(-20.0, 20.0))
        advantage = batch.advantage[batch.mask].double()
        up, down = advantage.clamp(min=0), (-advantage).clamp(min=0)
        low, high, balance = self.low_start, self.high_start, math.nan
        for low, high in self._pairs():
            positive = float((ratio.clamp(max=high) * up).sum())
            negative = float((ratio.clamp(min=low) * down).sum())
            balance = positive / negative if negative > 0 else math.inf
            if balance >= self.balance:
                break
        return self._plan(
            clip_low=1 - low,
            clip_high=high - 1,
            dual_clip=self.dual_clip,
            scalars={"low": low, "high": high, "balance": balance},
        )

    def _pairs(self) -> Iterator[tuple[float, float]]:
        """(low, high) in the order in which they are tried."""
        lows = _bounds(self.low_start, self.low_max, self.low_step)
        highs = _bounds(self.high_start, self.high_max, self.high_step)
        if self.first == "low":
            yield from ((low, highs[0]) for low in lows)
            yield from ((lows[-1], high) for high in highs[1:])
        else:
            yield from ((lows[0], high) for high in highs)
            yield from ((low, highs[-1]) for low in lows[1:])


def _bounds(start: float, stop: float, step: float) -> list[float]:
    """start, start + step, ... and stop."""
    count = math.ceil((stop - start) / step - 1e-9)
    return [start + i * step for i in range(count)] + [stop]
