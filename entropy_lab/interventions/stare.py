"""STARE: reweight the least likely tokens while entropy is below a gate (2606.19236)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from entropy_lab.interventions.base import Scope, State
from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.interventions.control import valid_mean
from entropy_lab.interventions.selection import choose
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


@dataclass(frozen=True, kw_only=True)
class Stare(ClipHigher):
    """While the rollout's mean entropy is below gate: weight_up on the least likely A > 0 tokens.

    They are the top ceil(top N+) of the scope's N+ tokens with A > 0 by -logp; variant C2 also puts
    weight_down on the top ceil(top N-) of those with A < 0. At or above the gate it is
    Clip-Higher, whose clip it has. The released code selects within each micro-batch (scope
    microbatch); its adaptive weights (off by default) are not here. arXiv 2606.19236, code in
    hp-luo/STARE. Raises ConfigError for a weight or share out of range.
    """

    name: ClassVar[str] = "stare"
    source: ClassVar[str] = "arXiv 2606.19236"

    variant: Literal["O1", "C2"] = "O1"
    weight_up: float = 1.1
    weight_down: float = 0.9
    top: float = 0.1
    gate: float = 0.3
    scope: Scope = "minibatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("weight_up", 1 <= self.weight_up < math.inf, "a finite weight >= 1, e.g. 1.1")
        self._check("weight_down", 0 <= self.weight_down <= 1, "a weight in [0, 1], e.g. 0.9")
        self._check("top", 0 < self.top <= 1, "a share of the tokens in (0, 1], e.g. 0.1")
        self._check("gate", self.gate > 0, "an entropy > 0 in nats (inf: always on), e.g. 0.3")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp", "entropy"})

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """entropy: the rollout's mean, in nats."""
        known = self._stats(stats, "begin_rollout")
        return {**state, "entropy": valid_mean(known.entropy, batch.mask)}

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """Clip-Higher's plan, with weights while the gate is open."""
        known = self._stats(stats)
        surprisal = torch.where(batch.mask, -known.logp, 0.0)  # (B, T)
        weight, selected = torch.ones_like(surprisal), torch.zeros_like(batch.mask)
        opened = self._recall(self._started(batch, stats, state), "entropy") < self.gate
        sides = [(batch.advantage > 0, self.weight_up)]
        if self.variant == "C2":
            sides.append((batch.advantage < 0, self.weight_down))
        for side, factor in sides if opened else ():
            candidates = batch.mask & side
            # 0.1 * 30 is a little above 3 in binary: what should be whole must not round up.
            count = math.ceil(self.top * int(candidates.sum()) - 1e-6)
            chosen = choose(batch, candidates, count, score=surprisal)
            weight, selected = weight.masked_fill(chosen, factor), selected | chosen
        return self._plan(
            weight=weight,
            selected=selected,
            omega=surprisal,
            scalars={"gate": float(opened), "selected": float(selected.sum())},
        )
