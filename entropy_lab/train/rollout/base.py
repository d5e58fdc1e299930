"""What every rollout engine takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """Sampled responses; row i answers prompt i // n. Detached, on the model's device.

    prompt_id (B, P) int64 left-padded, prompt_mask (B, P) bool; token_id (B, T) int64
    right-padded, mask (B, T) bool counts the EOS; truncated (B,) bool: max_tokens were drawn and
    none of them was an EOS. logp (B, T) float32, 0 at padding: log-probabilities of the tokens
    under the distribution that the engine drew them from; None where it reports none.
    """

    prompt_id: Tensor
    prompt_mask: Tensor
    token_id: Tensor
    mask: Tensor
    truncated: Tensor
    logp: Tensor | None = None


class RolloutEngine(Protocol):
    """Samples n responses a prompt from softmax(logits / temperature), nothing cut off.

    A pure function of the weights and the seed; the global random state and the model's
    training flag are left as found. tolerance: how far `Responses.logp` may lie from the
    trainer's logp, in nats on average. `close` frees what the engine holds.
    """

    @property
    def tolerance(self) -> float: ...

    def generate(
        self,
        model: Any,
        prompts: list[list[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> Responses: ...

    def close(self) -> None: ...


def end_tokens(model: Any) -> tuple[list[int], int]:
    """(ids that end a response, id of padding), as the model's generation settings say."""
    own = model.generation_config
    eos = own.eos_token_id
    eos = [eos] if isinstance(eos, int) else list(eos or [])
    return eos, own.pad_token_id if own.pad_token_id is not None else (eos or [0])[0]


def left_pad(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, P) token ids and which of them are no padding. Raises ValueError for an empty prompt."""
    if not all(prompts):
        raise ValueError("a prompt has no tokens: generation needs at least one")
    longest = max(map(len, prompts))
    rows = [[pad] * (longest - len(p)) + p for p in prompts]
    kept = [[False] * (longest - len(p)) + [True] * len(p) for p in prompts]
    return torch.tensor(rows, device=device), torch.tensor(kept, device=device)
