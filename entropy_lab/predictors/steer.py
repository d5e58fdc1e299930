"""STEER's estimate as its theorem states it (2510.10150)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.stats import entropy_slopes
from entropy_lab.types import CLIPPED_HIGH, CLIPPED_LOW, TokenBatch, TokenGrad, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8


def steer_omega(
    batch: TokenBatch, stats: TokenStats, clipped: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """STEER's signed score: Omega = -I_clip r A pi (1 - pi)(log pi + H); it has the sign of dH.

    clipped (B, T) bool, true where the ratio clip stops the token's gradient (I_clip = 0).
    Returns (B, T) nats times the advantage's unit, 0 outside the mask. arXiv 2510.10150 v4.
    """
    known = stats.detach()
    surprise, _, _ = entropy_slopes(known)  # pi (log pi + H)
    ratio = torch.exp(known.logp - batch.old_logp)
    omega = -ratio * batch.advantage * (1 - torch.exp(known.logp)) * surprise
    return torch.where(batch.mask & ~clipped, omega, 0.0)


def steer(
    batch: TokenBatch,
    stats: TokenStats,
    grad: TokenGrad,
    flags: UInt8[Tensor, "B T"],
    lr: float,
) -> Float[Tensor, "B T"]:
    """Entropy change by STEER's theorem: dH = -lr I_clip r A pi (1 - pi)(log pi + H) / N.

    I_clip comes from flags (B, T) uint8, N is the step's number of valid tokens. Assumes a tabular
    softmax, plain SGD, and that only the sampled logit moves. Returns (B, T) nats.
    arXiv 2510.10150 v4, Theorem 1, Equations 6-8.
    """
    clipped = (flags & (CLIPPED_HIGH | CLIPPED_LOW)) != 0
    return lr * steer_omega(batch, stats, clipped) / batch.mask.sum().clamp(min=1)
