"""Clip-Higher, the asymmetric interval of DAPO (2503.14476)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entropy_lab.interventions.grpo import Grpo


@dataclass(frozen=True, kw_only=True)
class ClipHigher(Grpo):
    """GRPO with the upper clip raised to 1.28, so that unlikely tokens may grow more.

    arXiv 2503.14476; without DAPO's length penalty and dynamic sampling.
    """

    name: ClassVar[str] = "clip_higher"
    source: ClassVar[str] = "arXiv 2503.14476"

    clip_high: float = 0.28
