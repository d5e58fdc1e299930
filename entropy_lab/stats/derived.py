"""What follows from the five numbers of a position without its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.types import TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, Int8

QUADRANTS = ("pos_likely", "pos_unlikely", "neg_likely", "neg_unlikely", "zero")


def entropy_slopes(
    stats: TokenStats,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """S_a, E[S] and sum S^2, where S_v = pi_v (log pi_v + H) = -dH/dz_v (arXiv 2602.03392).

    S_a = pi_a (log pi_a + H), E[S] = sum pi S = m1 + H m0, sum S^2 = m2 + 2 H m1 + H^2 m0.
    Three tensors of the statistics' shape (B, T), in nats (the last in nats squared).
    """
    h = stats.entropy
    # pi is 0 long before this bound; it keeps 0 * -inf out of impossible tokens.
    surprise = stats.logp.exp() * (stats.logp.clamp(min=-1e4) + h)
    mean_surprise = stats.m1 + h * stats.m0
    square = stats.m2 + 2 * h * stats.m1 + h * h * stats.m0
    return surprise, mean_surprise, square.clamp(min=0.0)


def quadrant(
    advantage: Float[Tensor, "B T"], logp: Float[Tensor, "B T"], entropy: Float[Tensor, "B T"]
) -> Int8[Tensor, "B T"]:
    """Index into QUADRANTS of each token, int8, by the signs of A and of logp + H.

    0 pos_likely (A > 0, logp > -H) and 3 neg_unlikely lower the entropy to first order, 1
    pos_unlikely and 2 neg_likely raise it, 4 zero is A == 0. All arguments (B, T).
    """
    unlikely = (logp <= -entropy).to(torch.int8)
    index = unlikely + 2 * (advantage < 0).to(torch.int8)
    return index.masked_fill(advantage == 0, 4)
