"""Rollout engines: the dict below is the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from entropy_lab.train.rollout.base import Responses, RolloutEngine
from entropy_lab.train.rollout.hf import HFEngine
from entropy_lab.train.rollout.vllm import VLLMEngine

# Each takes the settings of the run.
ENGINES: dict[str, Callable[[Any], RolloutEngine]] = {
    "hf": lambda config: HFEngine(logp=config.train.rollout_correction != "none"),
    "vllm": lambda config: VLLMEngine(config.vllm, config.model.autocast),
}

__all__ = ["ENGINES", "HFEngine", "Responses", "RolloutEngine", "VLLMEngine"]
