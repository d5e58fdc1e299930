"""Which responses share a forward pass: a fixed number of them, or as many as a token budget holds.

A pass over rows of width P + T costs rows x (P + T), the padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_lab.train.rollout import Responses


class Widths(NamedTuple):
    """What a micro-batch looked like to the model: its rows, and P and T of its tensors."""

    rows: int
    prompt: int
    response: int


@dataclass(frozen=True)
class Layout:
    """micro_batch responses in their order where micro_tokens is 0, padded as they came.

    Else micro-batches of at most micro_tokens padded tokens, each trimmed to its own longest prompt
    and response. A response that is longer than the budget has one to itself.
    """

    micro_batch: int
    micro_tokens: int = 0

    def micros(self, responses: Responses, first: int, end: int) -> list[Tensor | slice]:
        """The responses first, ..., end - 1 as micro-batches, each in rising order."""
        if not self.micro_tokens:
            size = self.micro_batch
            return [slice(a, min(a + size, end)) for a in range(first, end, size)]
        span = slice(first, end)
        prompt = responses.prompt_mask[span].sum(1).tolist()
        response = responses.mask[span].sum(1).tolist()
        device = responses.token_id.device
        return [
            torch.tensor(sorted(first + i for i in rows), device=device)
            for rows in buckets(prompt, response, self.micro_tokens)
        ]

    def cut(self, responses: Responses, rows: Tensor | slice) -> Responses:
        """The responses of one micro-batch, as wide as they go through the model."""
        chosen = responses.rows(rows)
        return chosen.trimmed() if self.micro_tokens else chosen


def buckets(prompt: Sequence[int], response: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows of like length, so that rows x (max prompt + max response) <= budget.

    prompt, response: lengths in tokens. Rows are taken by rising length (prompt + response), equal
    ones by prompt length and then in their order, and a bucket is closed where the next row would
    pass the budget: a function of the lengths alone.
    """
    order = sorted(range(len(prompt)), key=lambda i: (prompt[i] + response[i], prompt[i], i))
    out: list[list[int]] = []
    widest = (0, 0)
    for i in order:
        wider = (max(widest[0], prompt[i]), max(widest[1], response[i]))
        if out and (len(out[-1]) + 1) * sum(wider) <= budget:
            out[-1].append(i)
            widest = wider
        else:
            out.append([i])
            widest = (prompt[i], response[i])
    return out
