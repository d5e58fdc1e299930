"""What every rollout engine takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Responses:
    """Sampled responses; row i answers prompt i // n. Detached, on the model's device.

    prompt_id (B, P) int64 left-padded, prompt_mask (B, P) bool; token_id (B, T) int64
    right-padded, mask (B, T) bool counts the EOS; truncated (B,) bool: max_tokens were drawn and
    none of them was an EOS. logp (B, T) float32 nats, 0 at padding: log-probabilities of the tokens
    under the distribution that the engine drew them from; None where it reports none.
    """

    prompt_id: Tensor
    prompt_mask: Tensor
    token_id: Tensor
    mask: Tensor
    truncated: Tensor
    logp: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Self:
        """The responses chosen by `index` (B',), as wide as before."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {k: v if v is None else v[index] for k, v in named.items()}
        return type(self)(**chosen)

    def trimmed(self) -> Self:
        """As wide as the longest prompt and the longest response among them."""
        prompt, steps = int(self.prompt_mask.sum(1).max()), int(self.mask.sum(1).max())
        left = self.prompt_id.shape[1] - prompt
        return type(self)(
            self.prompt_id[:, left:].contiguous(),
            self.prompt_mask[:, left:].contiguous(),
            self.token_id[:, :steps].contiguous(),
            self.mask[:, :steps].contiguous(),
            self.truncated,
            None if self.logp is None else self.logp[:, :steps].contiguous(),
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Responses of several calls one after another, padded with token 0 where widths differ;
        logp is None where one part has none."""
        prompt = max(p.prompt_id.shape[1] for p in parts)
        steps = max(p.token_id.shape[1] for p in parts)

        def joined(name: str, left: int = 0, right: int = 0) -> Tensor:
            values = [getattr(p, name) for p in parts]
            return torch.cat(
                [pad(v, (left and left - v.shape[1], right and right - v.shape[1])) for v in values]
            )

        return cls(
            joined("prompt_id", left=prompt),
            joined("prompt_mask", left=prompt),
            joined("token_id", right=steps),
            joined("mask", right=steps),
            torch.cat([p.truncated for p in parts]),
            None if any(p.logp is None for p in parts) else joined("logp", right=steps),
        )


class RolloutEngine(Protocol):
    """Samples n responses a prompt from softmax(logits / temperature), nothing cut off.

    For evaluation alone, top_p < 1 keeps the likeliest tokens that reach this probability, and
    temperature 0 takes the likeliest token each time.

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
        top_p: float = 1.0,
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
