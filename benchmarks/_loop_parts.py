"""Stop-watches on the parts of the bundled trainer's loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

PARTS = ("rollout", "old logp", "forward", "backward", "optimizer", "probe", "log")


def time_parts(seconds: dict[str, float]) -> None:
    """Put stop-watches on the loop's functions; what runs inside another one counts once."""
    from entropy_lab.probe import Probe, meters, probe
    from entropy_lab.record import RunWriter
    from entropy_lab.train import loop
    from entropy_lab.train.parts import Parts

    inner = [0.0]  # seconds of the parts inside the one that runs

    def watched(label: str, call: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                took = time.perf_counter() - started
                seconds[label] = seconds.get(label, 0.0) + took - inner.pop()
                inner[-1] += took

        return run

    for owner, name, label in (
        (Parts, "sample", "rollout"),
        (Parts, "micros", "old logp"),
        (meters.Meters, "forward", "forward"),
        (torch.Tensor, "backward", "backward"),
        (loop, "clip", "optimizer"),
        (import_module("torch.optim.adam"), "adam", "optimizer"),
        (Probe, "before_step", "probe"),
        (Probe, "after_step", "probe"),
        (probe, "write_token_rows", "log"),
        (RunWriter, "step", "log"),
        (RunWriter, "samples", "log"),
        (RunWriter, "commit", "log"),
    ):
        patch.object(owner, name, watched(label, getattr(owner, name))).start()


def split(walls: list[float], parts: list[dict[str, float]], steps: int) -> str:
    """Mean milliseconds a step of each part, of rollouts of `steps` steps that took `walls`."""
    mean = {name: float(np.mean([p.get(name, 0.0) for p in parts])) for name in PARTS}
    mean["rest"] = float(np.mean(walls)) - sum(mean.values())
    return ", ".join(f"{name} {1e3 * value / steps:.0f}" for name, value in mean.items())
