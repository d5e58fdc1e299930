"""Losses as their sources write them, in plain PyTorch, and what a plan is held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import Method, make_method
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats
from token_examples import example, loss_and_grad


def wide(seed: int = 0, rows: int = 12) -> tuple[TokenBatch, TokenStats]:
    """A ragged batch with ratios from about e^-4 to e^4, so that every clip binds somewhere."""
    _, batch, stats = example(seed, rows=rows)
    noise = torch.tensor(np.random.default_rng(seed + 50).normal(size=batch.mask.shape)) * 1.5
    return replace(batch, old_logp=(stats.logp + noise).clamp(max=-0.02)), stats


def ppo(
    ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float = math.inf
) -> Tensor:
    """PPO's clipped loss of each token with the dual clip, as verl writes it."""
    clipped = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))
    if dual == math.inf:
        return clipped
    return torch.where(advantage < 0, torch.minimum(-advantage * dual, clipped), clipped)


def token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    return (loss * mask).sum() / mask.sum()


def assert_parity(
    batch: TokenBatch, stats: TokenStats, plan: TokenPlan, source: Callable[[Tensor], Tensor]
) -> None:
    """The plan has the loss of `source`, a function of logp (B, T), and its gradient."""
    loss, grad = loss_and_grad(batch, stats, plan)
    leaf = stats.logp.detach().clone().requires_grad_()
    wanted = source(leaf)
    (wanted_grad,) = torch.autograd.grad(wanted, leaf)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-12, abs=1e-13)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-10, atol=1e-14)
    assert (grad != 0).any()


def touched(
    batch: TokenBatch, stats: TokenStats, name: str, *, base: dict[str, Any] | None = None, **params
) -> Tensor:
    """Where the gradient of method `name` is not that of grpo (with settings `base`), (B, T)."""
    _, grad = loss_and_grad(batch, stats, make_method(name, **params).plan(batch, stats))
    _, plain = loss_and_grad(batch, stats, make_method("grpo", **(base or {})).plan(batch, None))
    return ~torch.isclose(grad, plain, rtol=1e-10, atol=0.0)


def with_advantages(method: Method, batch: TokenBatch) -> TokenBatch:
    return replace(batch, advantage=method.advantages(batch))
