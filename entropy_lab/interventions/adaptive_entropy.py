"""An entropy bonus whose size follows the entropy (2505.22312)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from entropy_lab.interventions.base import State
from entropy_lab.interventions.control import valid_mean
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats

_DELTA = {"skywork": 1e-4, "trl": 0.005}
_BETA_MAX = {"skywork": 0.005, "trl": 1.0}


@dataclass(frozen=True, kw_only=True)
class AdaptiveEntropy(Grpo):
    """GRPO with L -= beta (mean entropy), where beta steers the entropy H towards target.

    beta <- clip(beta + delta if H < target else beta - delta, beta_min, beta_max), from start; the
    bonus acts only while the H that moved beta last was below target. skywork: H = -mean old_logp
    of a rollout moves beta once, for the next rollout. trl: H = mean entropy before a step moves
    beta for the next step, and H = target counts as below. delta and beta_max, left out, are the
    variant's: 1e-4 and 0.005 (or1_scripts of SkyworkAI/Skywork-OR1), 0.005 and 1
    (huggingface/trl). arXiv 2505.22312. Raises ConfigError for values out of range.
    """

    name: ClassVar[str] = "adaptive_entropy"
    source: ClassVar[str] = "arXiv 2505.22312"

    variant: Literal["skywork", "trl"] = "skywork"
    target: float = 0.2
    start: float = 0.0
    delta: float | None = None
    beta_min: float = 0.0
    beta_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        delta, beta_max = self._move_limits()
        self._check("target", 0 < self.target < float("inf"), "an entropy > 0 in nats, e.g. 0.2")
        self._check("delta", 0 < delta < float("inf"), "a finite step > 0, e.g. 1e-4")
        self._check(
            "beta_max",
            self.beta_min <= beta_max < float("inf"),
            f"a finite coefficient >= beta_min = {self.beta_min!r}",
        )
        self._check(
            "start",
            self.beta_min <= self.start <= beta_max,
            f"a coefficient within [beta_min, beta_max] = [{self.beta_min!r}, {beta_max!r}]",
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"} if self.variant == "trl" else ())

    def initial_state(self) -> State:
        """beta, and active: 1 while the bonus acts, as at the start."""
        return {"beta": self.start, "active": 1.0}

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """skywork: move by the rollout before, then remember the entropy of this one."""
        if self.variant == "trl":
            return state
        if "entropy" in state:
            state = self._moved(state, below=state["entropy"] < self.target)
        return {**state, "entropy": -valid_mean(batch.old_logp, batch.mask)}

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """GRPO's plan with entropy_coef = beta, or 0 while the bonus rests."""
        known = self._started(batch, stats, state)
        coefficient = known["beta"] if known["active"] else 0.0
        return self._plan(entropy_coef=coefficient, scalars={"entropy_coef": coefficient})

    def end_step(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """trl: move by the entropy that the step's tokens had before it."""
        if self.variant == "skywork":
            return state
        entropy = valid_mean(self._stats(stats, "end_step").entropy, batch.mask)
        return {**self._moved(state, below=entropy <= self.target), "entropy": entropy}

    def _moved(self, state: State, below: bool) -> State:
        delta, beta_max = self._move_limits()
        beta = state["beta"] + (delta if below else -delta)
        return {**state, "beta": min(max(beta, self.beta_min), beta_max), "active": float(below)}

    def _move_limits(self) -> tuple[float, float]:
        delta = _DELTA[self.variant] if self.delta is None else self.delta
        return delta, _BETA_MAX[self.variant] if self.beta_max is None else self.beta_max
