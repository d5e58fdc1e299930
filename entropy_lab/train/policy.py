"""The scoring pass: what a micro-batch holds and how the model turns it into statistics."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn

from entropy_lab.probe.scorer import Score
from entropy_lab.stats import token_stats
from entropy_lab.train.layout import Widths
from entropy_lab.train.rollout import Responses
from entropy_lab.types import TokenBatch, TokenStats


@dataclass(frozen=True)
class Inputs:
    """One micro-batch for the model: prompts left-padded, responses right-padded, joined.

    input_id, seen: (B, P+T); position: (B, P+T) counts real tokens; token_id (B, T): the tokens
    whose predictions are scored.
    """

    input_id: Tensor
    seen: Tensor
    position: Tensor
    token_id: Tensor


@dataclass(frozen=True)
class Micro:
    """Rows that share one forward pass: what the model reads and what the loss reads."""

    inputs: Inputs
    batch: TokenBatch

    def pair(self) -> tuple[Inputs, TokenBatch]:
        return self.inputs, self.batch

    def widths(self) -> Widths:
        """Rows, prompt and response width of the pass."""
        rows, response = self.inputs.token_id.shape
        return Widths(rows, self.inputs.input_id.shape[1] - response, response)

    def sampled(self) -> Tensor:
        """Which positions hold sampled tokens, those of a response left out of the loss too:
        (B, T) bool."""
        return self.inputs.seen[:, self.widths().prompt :].bool()


def model_inputs(responses: Responses, rows: slice = slice(None)) -> Inputs:
    """The scoring layout of some responses; it does not change while they are in use."""
    token_id, mask = responses.token_id[rows], responses.mask[rows]
    seen = torch.cat([responses.prompt_mask[rows], mask], dim=1).long()
    return Inputs(
        input_id=torch.cat([responses.prompt_id[rows], token_id], dim=1),
        seen=seen,
        position=(seen.cumsum(1) - 1).clamp(min=0),
        token_id=token_id,
    )


def make_score(model: nn.Module, temperature: float, autocast: str = "none") -> Score:
    """score(inputs) -> TokenStats (B, T) of softmax(logits / temperature) at response tokens.

    autocast: the dtype that the model's products run in ("none": that of its weights); the
    statistics are summed in float32 whatever the logits' dtype.
    """
    low = None if autocast == "none" else getattr(torch, autocast)
    known = signature(model.forward).parameters

    def score(inputs: Inputs) -> TokenStats:
        steps = inputs.token_id.shape[1]
        some = {"position_ids": inputs.position, "logits_to_keep": steps + 1}
        with torch.autocast(inputs.token_id.device.type, low, enabled=low is not None):
            logits = model(
                input_ids=inputs.input_id,
                attention_mask=inputs.seen,
                use_cache=False,
                **{name: value for name, value in some.items() if name in known},
            ).logits  # (B, T+1, V), or (B, P+T, V) where the model cannot be asked for less
        # Position t predicts token t+1: the last row predicts past the end.
        return token_stats(logits[:, -steps - 1 : -1], inputs.token_id, temperature)

    return score
