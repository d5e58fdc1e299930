"""Closed-form predictions for the rows of a step and for rows that only watch it."""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_lab.predictors import PREDICTORS
from entropy_lab.predictors.softmax_state import softmax_state
from entropy_lab.probe.window import Window
from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

# What a closed form reads of the batch beyond the fields that are always there.
_OPTIONAL_INPUT = {"steer_released": "old_entropy", "softmax_state": "state"}


def _nan(like: Tensor) -> Tensor:
    return torch.full_like(like, float("nan"))


def predict_window(window: Window, lr: float) -> dict[str, Tensor]:
    """Every registered closed form on all tokens of the step: name -> (B, T) nats.

    A form whose inputs the batch does not carry (old_entropy, state) is NaN throughout.
    """
    flags = window.per_token("flags")
    return predict_step(window.batch(), window.stats(), window.grad(), flags, lr)


def predict_step(
    batch: TokenBatch, stats: TokenStats, grad: TokenGrad, flags: Tensor, lr: float
) -> dict[str, Tensor]:
    """The same for a step whose rows (B, T) are all in one batch; flags (B, T) uint8."""
    predicted = {}
    for name, predictor in PREDICTORS.items():
        optional = _OPTIONAL_INPUT.get(name)
        lacking = optional is not None and getattr(batch, optional) is None
        predicted[name] = _nan(stats.logp) if lacking else predictor(batch, stats, grad, flags, lr)
    return predicted


def predict_held_out(
    window: Window, batch: TokenBatch, stats: TokenStats, lr: float
) -> dict[str, Tensor]:
    """The closed forms on rows (B, T) that are not in the update.

    A form that looks at one row alone says 0: nothing pushed it. `softmax_state` carries over
    what the step's own rows did to the identical state.
    """
    predicted = {name: torch.zeros_like(stats.logp) for name in PREDICTORS}
    parts = [r.batch for r in window.records]
    if batch.state is None or any(p.state is None for p in parts):
        predicted["softmax_state"] = _nan(stats.logp)
        return predicted
    idle = TokenGrad(torch.zeros_like(stats.logp), torch.zeros_like(stats.logp))
    pushed = softmax_state(
        TokenBatch.cat([*parts, batch]),
        TokenStats.cat([*(r.stats for r in window.records), stats]),
        TokenGrad.cat([*(r.grad for r in window.records), idle]),
        torch.empty(0),
        lr,
    )
    size, width = stats.logp.shape
    predicted["softmax_state"] = pushed[-size:, :width]
    return predicted
