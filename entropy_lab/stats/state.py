"""A 64-bit name for the state (prompt and prefix) that each token was sampled in."""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


# The finaliser of splitmix64: a bijection on 64 bits in which every input bit moves every output
# bit. torch has no unsigned 64-bit arithmetic; int64 wraps around to the same bits.
_STEP = _signed(0x9E3779B97F4A7C15)
_MIX = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # int64 >> copies the sign bit


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX[0]
    x = (x ^ _shift_right(x, 27)) * _MIX[1]
    return x ^ _shift_right(x, 31)


def state_hash(prompt_id: Tensor, prompt_mask: Tensor, token_id: Tensor) -> Tensor:
    """Hash of the prompt and of the response tokens before each position, (B, T) int64.

    hash_t = mix(sum over the tokens i before t of mix(token_i + mix(i))), so equal states agree
    whatever the padding, batch or process, and unequal ones collide with probability 2^-64.
    prompt_id (B, P) int64; prompt_mask (B, P) bool, false on padding (either side); token_id
    (B, T) int64, right-padded (the hash of a padded position means nothing).
    Raises ValueError on shapes that do not fit and TypeError on a mask that is not bool.
    """
    if prompt_mask.dtype != torch.bool:
        raise TypeError(f"prompt_mask must be bool, got {prompt_mask.dtype}: pass mask.bool()")
    shapes = [tuple(t.shape) for t in (prompt_id, prompt_mask, token_id)]
    if token_id.ndim != 2 or shapes[0] != shapes[1] or shapes[0][:1] != shapes[2][:1]:
        raise ValueError(
            f"prompt_id, prompt_mask, token_id have shapes {shapes}: they must be (B, P), (B, P) "
            "and (B, T)"
        )
    place = prompt_mask.long().cumsum(1) - 1  # (B, P) position among the real tokens
    length = prompt_mask.sum(1, keepdim=True)  # (B, 1)
    prompt = _term(prompt_id, place).masked_fill(~prompt_mask, 0).sum(1, keepdim=True)
    steps = torch.arange(token_id.shape[1], device=token_id.device)
    response = _term(token_id, length + steps)  # (B, T)
    before = prompt + response.cumsum(1) - response
    return _mix(before + _STEP)


def _term(token_id: Tensor, place: Tensor) -> Tensor:
    return _mix(token_id.long() + _mix((place + 1) * _STEP))
