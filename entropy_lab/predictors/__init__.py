"""Closed-form estimates of each token's entropy change, by name; PREDICTORS is the registry.

Every function takes (batch, stats, grad, flags, lr) of ONE WHOLE optimizer step and returns
(B, T) nats, 0 outside the mask: means, N and repeated states run over all of its valid tokens, so
a sub-batch gives other numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from entropy_lab.predictors.cov import cov, score_cov
from entropy_lab.predictors.discriminant import discriminant
from entropy_lab.predictors.softmax import softmax
from entropy_lab.predictors.softmax_state import softmax_state
from entropy_lab.predictors.steer import steer, steer_omega
from entropy_lab.predictors.steer_released import steer_released, steer_released_omega
from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

Predictor = Callable[[TokenBatch, TokenStats, TokenGrad, Tensor, float], Tensor]

PREDICTORS: dict[str, Predictor] = {
    "cov": cov,
    "steer": steer,
    "steer_released": steer_released,
    "discriminant": discriminant,
    "softmax": softmax,
    "softmax_state": softmax_state,
}

__all__ = [
    "PREDICTORS",
    "Predictor",
    "cov",
    "discriminant",
    "score_cov",
    "softmax",
    "softmax_state",
    "steer",
    "steer_omega",
    "steer_released",
    "steer_released_omega",
]
