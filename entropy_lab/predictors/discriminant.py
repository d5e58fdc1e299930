"""The sampled token's entropy discriminant (2602.03392)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.stats import entropy_slopes
from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


def discriminant(
    batch: TokenBatch,
    stats: TokenStats,
    grad: TokenGrad,
    flags: UInt8[Tensor, "B T"],
    lr: float,
) -> Float[Tensor, "B T"]:
    """Entropy change if only the sampled logit moved by lr c: dH = -lr c S_a.

    S_a = pi_a (log pi_a + H) and c = grad.grad_logp. Assumes independent softmax logits at every
    position. Returns (B, T) nats, 0 outside the mask. arXiv 2602.03392, Theorem 3.2.
    """
    surprise, _, _ = entropy_slopes(stats.detach())
    return torch.where(batch.mask, -lr * grad.grad_logp * surprise, 0.0)
