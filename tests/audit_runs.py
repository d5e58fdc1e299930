"""Runs of the real trainer whose methods leave a trace: several steps a rollout, large ones."""

from __future__ import annotations

from pathlib import Path

from entropy_lab.train.launch import run_training
from tiny import TINY

# Eight responses a step, four steps a rollout, and steps large enough for ratios to be clipped.
SMALL = [
    *TINY,
    "rollout.prompts=8",
    "train.rollouts=3",
    "train.minibatches=4",
    "train.checkpoint_every=0",
    "optimizer.lr=1e-2",
    "probe.fixed_responses=0",
]
METHODS = {
    "grpo": [],
    "clip_higher": [],
    "clip_cov": ["method.ratio=0.1", "method.lb=0.0", "method.ub=9.0"],
    "kl_cov": ["method.ratio=0.1"],
    "steer": [],
    "entropy_bonus": ["method.beta=0.05"],
}


def trained(path: Path, name: str, *more: str) -> Path:
    settings = [*SMALL, f"method.name={name}", *METHODS[name], *more]
    return run_training(None, settings, path / name)


def spec(name: str) -> str:
    params = ",".join(text.removeprefix("method.") for text in METHODS[name])
    return f"{name}:{params}" if params else name
