"""REPO-R: advantages rescaled by the token's log-probability (2603.11682)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from entropy_lab.interventions.base import State
from entropy_lab.interventions.control import valid_mean
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class RepoR(Grpo):
    """A > 0: A <- max(0, A (1 - zeta logp)); A < 0: A <- min(0, A (1 + zeta logp)).

    logp is detached and at least logp_floor; zeta > 0 favours rare tokens. The factor of A is
    never negative, so it is a weight on the clipped loss. Each rollout but the first moves zeta by
    its mean entropy H: H < target doubles a positive zeta and halves a negative one, H > target
    the reverse, with |zeta| at most zeta_max; a halving below zeta_min flips it to zeta_min of the
    other sign. target, left out, is the first rollout's H. arXiv 2603.11682, Appendix D.2; also in
    NovaSky-AI/SkyRL. Raises ConfigError for values out of range.
    """

    name: ClassVar[str] = "repo_r"
    source: ClassVar[str] = "arXiv 2603.11682"
    unconfirmed: ClassVar[str] = (
        "zeta, logp_floor and how the controller passes zero are a re-implementation's, not the "
        "paper's text"
    )

    zeta: float = 1e-3
    zeta_min: float = 1e-4
    zeta_max: float = 0.05
    target: float | None = None
    logp_floor: float = -20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("zeta_min", 0 < self.zeta_min < float("inf"), "a number > 0, e.g. 1e-4")
        self._check(
            "zeta_max",
            self.zeta_min <= self.zeta_max < float("inf"),
            f"a finite number >= zeta_min = {self.zeta_min!r}",
        )
        self._check(
            "zeta",
            self.zeta_min <= abs(self.zeta) <= self.zeta_max,
            f"a number of size {self.zeta_min!r} to {self.zeta_max!r}, of either sign",
        )
        self._check("target", self.target is None or self.target > 0, "an entropy > 0 in nats")
        self._check("logp_floor", self.logp_floor < 0, "a log-probability below 0, e.g. -20.0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp", "entropy"})

    def initial_state(self) -> State:
        """zeta."""
        return {"zeta": self.zeta}

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """zeta of the rollout; entropy: its H; target: the H aimed at."""
        entropy = valid_mean(self._stats(stats, "begin_rollout").entropy, batch.mask)
        if "target" in state:
            zeta = self._moved(state["zeta"], entropy - state["target"])
            return {**state, "zeta": zeta, "entropy": entropy}
        target = entropy if self.target is None else self.target
        return {**state, "target": target, "entropy": entropy}

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """GRPO's plan with the rescaling as a weight."""
        logp = self._stats(stats).logp.clamp(min=self.logp_floor)  # (B, T)
        zeta = self._recall(self._started(batch, stats, state), "zeta")
        sign = torch.where(batch.mask, batch.advantage.sign(), 0.0)
        factor = torch.where(sign == 0, 1.0, 1 - sign * zeta * logp)
        return self._plan(weight=factor.clamp(min=0.0))

    def _moved(self, zeta: float, excess: float) -> float:
        sign = 1.0 if zeta > 0 else -1.0
        if excess * sign < 0:
            return sign * min(2 * abs(zeta), self.zeta_max)
        if excess * sign > 0:
            half = abs(zeta) / 2
            return sign * half if half >= self.zeta_min else -sign * self.zeta_min
        return zeta
