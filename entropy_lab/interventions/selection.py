"""Choosing tokens of a step so that the choice belongs to the tokens, not to their layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.stats.state import mix64, signed64
from entropy_lab.types import TokenBatch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64


def token_hash(batch: TokenBatch) -> Int64[Tensor, "B T"]:
    """A pseudo-random int64 for every token: a pure function of (seed, step, uid, position).

    Returns (B, T); equal for a token in any batch order, micro-batch split or padding, on any
    device. Raises ValueError where batch.uid is None.
    """
    if batch.uid is None:
        raise ValueError(
            "choosing tokens reads batch.uid, which is None: pass uid (B,) int64, an identity for "
            "each response that does not depend on where it sits in the batch"
        )
    device = batch.token_id.device
    position = torch.arange(batch.token_id.shape[1], device=device)
    h = mix64(torch.tensor(signed64(batch.seed), device=device))
    h = mix64(h ^ signed64(batch.step))
    h = mix64(h ^ batch.uid.long())  # (B,)
    return mix64(h[:, None] ^ position)  # (B, T)


def choose(
    batch: TokenBatch,
    candidates: Bool[Tensor, "B T"],
    count: int,
    score: Float[Tensor, "B T"] | None = None,
) -> Bool[Tensor, "B T"]:
    """The `count` candidates of highest score, ties broken by token_hash; at random without one.

    candidates (B, T) bool; score (B, T). Returns (B, T) bool, all candidates where they are fewer
    than count. Raises ValueError where batch.uid is None.
    """
    index = candidates.flatten().nonzero().squeeze(1)
    # Responses of a group often repeat a prefix: their scores tie exactly, and a sort by score
    # alone would let the batch order decide.
    index = index[token_hash(batch).flatten()[index].argsort()]
    if score is not None:
        index = index[score.flatten()[index].argsort(descending=True, stable=True)]
    selected = torch.zeros_like(candidates.flatten())
    selected[index[:count]] = True
    return selected.view_as(candidates)


def share_count(ratio: float, mask: Bool[Tensor, "B T"]) -> int:
    """max(1, floor(ratio N)) of the N tokens with mask."""
    return max(1, int(ratio * int(mask.sum())))
