"""A 64-bit name for the state (prompt and prefix) that each token was sampled in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64

# The odd constant of splitmix64's counter and the two of its finaliser, a bijection on 64 bits in
# which every input bit moves every output bit.
_STEP = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def signed64(number: int) -> int:
    """The int64 with the low 64 bits of `number`."""
    return (number + 2**63) % 2**64 - 2**63


def mix64(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """One splitmix64 step on int64 of any shape; torch's products wrap modulo 2^64."""
    x = x + signed64(_STEP)
    x = (x ^ _shift_right(x, 30)) * signed64(_MIX[0])
    x = (x ^ _shift_right(x, 27)) * signed64(_MIX[1])
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask clears the copied sign bits.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def state_hash(
    prompt_id: Int64[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    token_id: Int64[Tensor, "B T"],
) -> Int64[Tensor, "B T"]:
    """Hash of the prompt and of the response tokens before each position, (B, T) int64.

    hash_t = mix64(sum over the tokens i before t of mix64(token_i + mix64(i))), so equal
    states agree whatever the padding, batch or process; unequal ones collide with chance 2^-64.
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
    return mix64(before)


def _term(token_id: Tensor, place: Tensor) -> Tensor:
    return mix64(token_id.long() + mix64(place))
