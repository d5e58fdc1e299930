"""Rollout engines: the dict below is the registry."""

from __future__ import annotations

from collections.abc import Callable

from entropy_lab.train.rollout.base import Responses, RolloutEngine
from entropy_lab.train.rollout.hf import HFEngine

ENGINES: dict[str, Callable[[], RolloutEngine]] = {
    "hf": HFEngine,
}

__all__ = ["ENGINES", "HFEngine", "Responses", "RolloutEngine"]
