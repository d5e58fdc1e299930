"""Exact first order of one position with logits of its own (2602.03392, 2602.09782)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.stats import entropy_slopes
from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


def softmax(
    batch: TokenBatch,
    stats: TokenStats,
    grad: TokenGrad,
    flags: UInt8[Tensor, "B T"],
    lr: float,
) -> Float[Tensor, "B T"]:
    """Entropy change of a free softmax row under SGD: dH = lr (-c (S_a - E[S]) + e sum S^2).

    c = grad.grad_logp, e = grad.grad_entropy. Exact to first order for independent logits at every
    position. Returns (B, T) nats, 0 outside the mask. arXiv 2602.03392 (Theorem 3.3), 2602.09782.
    """
    surprise, mean_surprise, square_surprise = entropy_slopes(stats.detach())
    policy = -grad.grad_logp * (surprise - mean_surprise)
    return torch.where(batch.mask, lr * (policy + grad.grad_entropy * square_surprise), 0.0)
