"""What every rollout engine takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """Sampled responses; row i answers prompt i // n. Detached, on the model's device.

    prompt_id (B, P) int64 left-padded, prompt_mask (B, P) bool; token_id (B, T) int64
    right-padded, mask (B, T) bool counts the EOS; truncated (B,) bool: max_tokens were drawn and
    none of them was an EOS.
    """

    prompt_id: Tensor
    prompt_mask: Tensor
    token_id: Tensor
    mask: Tensor
    truncated: Tensor


class RolloutEngine(Protocol):
    """Samples n responses a prompt from softmax(logits / temperature), nothing cut off.

    For evaluation alone, top_p < 1 keeps the likeliest tokens that reach this probability, and
    temperature 0 takes the likeliest token each time.

    A pure function of the weights and the seed; the global random state and the model's
    training flag are left as found.
    """

    def generate(
        self,
        model: Any,
        prompts: list[list[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        top_p: float = 1.0,
    ) -> Responses: ...
