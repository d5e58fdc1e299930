"""STEER's estimate as the authors' released code computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


def steer_released_omega(batch: TokenBatch, stats: TokenStats) -> Float[Tensor, "B T"]:
    """The released signed score: Omega = -(A / pi_old) pi (1 - pi)(log pi + H_old).

    pi is the current probability and H_old the entropy of the policy that generated. Returns
    (B, T) nats times the advantage's unit, 0 outside the mask. Raises ValueError where
    batch.old_entropy is None. Code of arXiv 2510.10150.
    """
    if batch.old_entropy is None:
        raise ValueError(
            "steer_released reads batch.old_entropy, which is None: pass the (B, T) entropy of the "
            "policy that generated, or use steer, which reads the current entropy"
        )
    logp = stats.logp.detach()
    # pi / pi_old as one exponential: pi_old alone underflows for tokens far in the tail.
    ratio = torch.exp(logp - batch.old_logp)
    omega = -ratio * batch.advantage * (1 - torch.exp(logp)) * (logp + batch.old_entropy)
    return torch.where(batch.mask, omega, 0.0)


def steer_released(
    batch: TokenBatch,
    stats: TokenStats,
    grad: TokenGrad,
    flags: UInt8[Tensor, "B T"],
    lr: float,
) -> Float[Tensor, "B T"]:
    """Entropy change by STEER's code: dH = -lr (A / pi_old) pi (1 - pi)(log pi + H_old) / N.

    It differs from the theorem: no I_clip, one factor pi less, and a stale entropy. N is the
    step's number of valid tokens. Returns (B, T) nats. Raises ValueError where batch.old_entropy
    is None. Code of arXiv 2510.10150.
    """
    return lr * steer_released_omega(batch, stats) / batch.mask.sum().clamp(min=1)
