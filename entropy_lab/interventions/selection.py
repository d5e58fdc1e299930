"""Choosing tokens of a step so that the choice belongs to the tokens, not to their layout."""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_lab.types import TokenBatch


def token_hash(batch: TokenBatch) -> Tensor:
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
    h = _mix(torch.tensor(_signed(batch.seed), device=device))
    h = _mix(h ^ _signed(batch.step))
    h = _mix(h ^ batch.uid.long())  # (B,)
    return _mix(h[:, None] ^ position)  # (B, T)


def choose(
    batch: TokenBatch, candidates: Tensor, count: int, score: Tensor | None = None
) -> Tensor:
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


def share_count(ratio: float, mask: Tensor) -> int:
    """max(1, floor(ratio N)) of the N tokens with mask."""
    return max(1, int(ratio * int(mask.sum())))


def _signed(number: int) -> int:
    """The int64 with the low 64 bits of `number`."""
    return (number + 2**63) % 2**64 - 2**63


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask clears the copied sign bits.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """One splitmix64 step on int64, whose products wrap modulo 2^64."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)
