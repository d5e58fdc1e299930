"""One step of data with every optional field, for the tests of shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entropy_lab.loss import LossOutput, TokenShare, policy_loss
from entropy_lab.stats import state_hash
from entropy_lab.types import TokenBatch, TokenGrad, TokenPlan, TokenStats
from token_examples import example

B, T, P = 6, 8, 3


def full_example() -> tuple[Tensor, TokenBatch, TokenStats]:
    """`example` with every optional field of the batch present."""
    logits, batch, stats = example(rows=B, length=T)
    prompt = torch.arange(B * P).view(B, P)
    batch = replace(
        batch,
        rollout_logp=batch.old_logp + 0.01,
        state=state_hash(prompt, prompt > 0, batch.token_id),
        truncated=batch.mask.all(1),
        rollout_weight=batch.old_logp.exp(),
    )
    return logits, batch, stats


def gradient(
    batch: TokenBatch, stats: TokenStats, plan: TokenPlan, share: TokenShare
) -> tuple[LossOutput, TokenGrad]:
    """The loss of one micro-batch and its gradient at logp and entropy, as the probe reads it."""
    known = replace(
        stats,
        logp=stats.logp.detach().requires_grad_(),
        entropy=stats.entropy.detach().requires_grad_(),
    )
    output = policy_loss(known, batch, plan, share)
    leaves = (known.logp, known.entropy)
    at = torch.autograd.grad(output.loss, leaves, allow_unused=True, materialize_grads=True)
    return output, TokenGrad(-at[0], -at[1])


def tensor_leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, tensor) of every tensor within dataclasses, lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield path, value
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensor_leaves(getattr(value, f.name), (*path, f.name))
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from tensor_leaves(item, (*path, key))
