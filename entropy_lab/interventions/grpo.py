"""Group-relative policy optimization (2402.03300)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entropy_lab.interventions.base import Clipped


@dataclass(frozen=True, kw_only=True)
class Grpo(Clipped):
    """PPO's clipped loss on the group-relative advantage: -min(r A, clip(r, 0.8, 1.2) A).

    For A < 0 the dual clip bounds it at -dual_clip * A: 10 as in the DAPO and STEER scripts (verl
    has 3). `token_mean` is DAPO's average; the original takes `seq_mean`. arXiv 2402.03300.
    """

    name: ClassVar[str] = "grpo"
    source: ClassVar[str] = "arXiv 2402.03300"

    dual_clip: float = 10.0
