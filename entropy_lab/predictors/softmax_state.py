"""Exact first order of a tabular policy: all rows of the step in one state move it together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.predictors.softmax import softmax
from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


def softmax_state(
    batch: TokenBatch,
    stats: TokenStats,
    grad: TokenGrad,
    flags: UInt8[Tensor, "B T"],
    lr: float,
) -> Float[Tensor, "B T"]:
    """Entropy change of a tabular policy under SGD: `softmax` summed over rows of equal state.

    Exact to first order for one softmax per state. Returns (B, T) nats, 0 outside the mask; every
    row of a state gets the state's sum. Raises ValueError where batch.state is None.
    """
    if batch.state is None:
        raise ValueError(
            "softmax_state reads batch.state, which is None: pass state (B, T) int64, the hash of "
            "prompt and prefix that entropy_lab.stats.state_hash computes"
        )
    own = softmax(batch, stats, grad, flags, lr)
    _, state = torch.unique(batch.state[batch.mask], return_inverse=True)  # (N,)
    # float64: the sum over a state must not depend on the order of its rows.
    total = torch.zeros(state.numel(), dtype=torch.float64, device=own.device)
    total.index_add_(0, state, own[batch.mask].double())
    result = torch.zeros_like(own)
    result[batch.mask] = total[state].to(own.dtype)
    return result
