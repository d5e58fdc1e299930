"""The learning rate as a function of the step alone, so that a resumed run needs no state."""

from __future__ import annotations

import math

import torch

from entropy_lab.train.config import Config


def lr_factor(config: Config, step: int) -> float:
    """Factor on optimizer.lr of the optimizer step `step`, counted from 0.

    w warm-up steps and N = schedule_steps: (step + 1) / w while step < w; then, with
    p = (step - w) / (N - w) in [0, 1] and m = min_lr_share, 1 ("constant"), m + (1 - m) (1 - p)
    ("linear") or m + (1 - m) (1 + cos(pi p)) / 2 ("cosine"). As in transformers' schedules, p is 1
    only after the last of the N steps.
    """
    o = config.optimizer
    if step < o.warmup_steps:
        return (step + 1) / o.warmup_steps
    if o.schedule == "constant":
        return 1.0
    p = min(1.0, (step - o.warmup_steps) / (scheduled_steps(config) - o.warmup_steps))
    left = 1 - p if o.schedule == "linear" else (1 + math.cos(math.pi * p)) / 2
    return o.min_lr_share + (1 - o.min_lr_share) * left


def scheduled_steps(config: Config) -> int:
    """The optimizer steps over which the rate falls."""
    return config.optimizer.schedule_steps or config.train.rollouts * config.train.minibatches


def set_lr(optimizer: torch.optim.Optimizer, config: Config, step: int) -> None:
    """Set the rate of every parameter group for the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.lr * lr_factor(config, step)
