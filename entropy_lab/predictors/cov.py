"""The covariance of advantage and log-probability (2505.22617)."""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_lab.types import TokenBatch, TokenGrad, TokenStats


def score_cov(advantage: Tensor, logp: Tensor, mask: Tensor) -> Tensor:
    """Each token's share of Cov(A, logp): (A - mean A) * (logp - mean logp).

    advantage, logp (B, T); mask (B, T) bool; means over the tokens with mask; the result is
    (B, T), 0 outside the mask, in nats times the advantage's unit. It is the selection score of
    Clip-Cov and KL-Cov, and the opposite sign of a predicted entropy change. arXiv 2505.22617.
    """
    score = _centred(advantage, mask) * _centred(logp, mask)
    return torch.where(mask, score, 0.0).to(logp.dtype)


def cov(batch: TokenBatch, stats: TokenStats, grad: TokenGrad, flags: Tensor, lr: float) -> Tensor:
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
