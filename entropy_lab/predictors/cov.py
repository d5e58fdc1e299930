"""The covariance of advantage and log-probability (2505.22617)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8


def score_cov(
    advantage: Float[Tensor, "B T"], logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Each token's share of Cov(A, logp): (A - mean A) * (logp - mean logp).

    advantage, logp (B, T); mask (B, T) bool; means over the tokens with mask; the result is
    (B, T), 0 outside the mask, in nats times the advantage's unit. It is the selection score of
    Clip-Cov and KL-Cov, and the opposite sign of a predicted entropy change. arXiv 2505.22617.
    """
    score = _centred(advantage, mask) * _centred(logp, mask)
    return torch.where(mask, score, 0.0).to(logp.dtype)


def cov(
    batch: TokenBatch,
    stats: TokenStats,
    grad: TokenGrad,
    flags: UInt8[Tensor, "B T"],
    lr: float,
) -> Float[Tensor, "B T"]:
    """Entropy change by the covariance theorem: dH = -lr (A - mean A)(logp - mean logp) / N.

    Means over the step's N valid tokens; assumes one softmax per state, the natural policy
    gradient and no clipping. Returns (B, T) nats. arXiv 2505.22617, Theorems 1 and 2.
    """
    score = score_cov(batch.advantage, stats.logp.detach(), batch.mask)
    return -lr * score / batch.mask.sum().clamp(min=1)


def _centred(x: Tensor, mask: Tensor) -> Tensor:
    # float64: the mean must not depend on how the rows are ordered.
    kept = torch.where(mask, x, 0.0).double()
    return kept - kept.sum() / mask.sum().clamp(min=1)
