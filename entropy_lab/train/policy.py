"""The scoring pass: what a micro-batch holds and how the model turns it into statistics."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from entropy_lab.errors import ConfigError
from entropy_lab.probe.scorer import Score, active_dropout, untouched_rng, without_dropout
from entropy_lab.stats import linear_token_stats, token_stats
from entropy_lab.train.layout import Widths
from entropy_lab.train.rollout import Responses
from entropy_lab.train.shared_prompts import (
    NewCache,
    cache_of,
    outputs_at_responses,
    without_repeats,
)
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
    """Rows that share one forward pass: what the model reads and what the loss reads.

    forward: the loss forward where it has been made already, for one backward.
    """

    inputs: Inputs
    batch: TokenBatch
    forward: TokenStats | None = None

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


# Logits of a pass beyond which "auto" does not hold them, in bytes of float32.
TILED_ABOVE = 256 * 2**20


def make_score(
    model: nn.Module,
    temperature: float,
    autocast: str = "none",
    tiled: bool | Literal["auto"] = "auto",
    share_prompts: bool = True,
) -> Score:
    """score(inputs) -> TokenStats (B, T) of softmax(logits / temperature) at response tokens.

    autocast: the dtype that the model's products run in ("none": that of its weights); the
    statistics are summed in float32 whatever the logits' dtype. tiled: from hidden states and head,
    a tile of the logits at a time; "auto" where B x T x V logits take more than 256 MiB and the
    head is a plain product, so passes of one shape always go one way. share_prompts: read a prompt
    that many rows have once; False where all ranks have to call the model alike, whatever their
    rows are. Raises ConfigError for tiled=True with another head.
    """
    low = None if autocast == "none" else getattr(torch, autocast)
    known = set(signature(model.forward).parameters)
    head = plain_head(model) if tiled else None
    base: Any = getattr(model, "base_model", None)
    if tiled is True and head is None:
        raise ConfigError(
            "train.tiled_head = true needs logits that are hidden states times a weight, with no "
            f"bias, scale or cap, which {type(model).__name__} does not have: set it to false"
        )

    def logits(*read: Any) -> Tensor:
        return call(model, read, known).logits

    def hidden(*read: Any) -> Tensor:
        return call(base, read, known - {"logits_to_keep"}).last_hidden_state

    new_cache = cache_of(model, logits) if share_prompts else None

    def score(inputs: Inputs) -> TokenStats:
        if active_dropout(model):  # equal rows do not drop the same units
            return scored(inputs, None)
        rows, which = without_repeats(inputs)
        stats = scored(rows, new_cache)
        return stats if which is None else stats.rows(which)

    def scored(inputs: Inputs, new_cache: NewCache | None) -> TokenStats:
        rows, steps = inputs.token_id.shape
        kind = inputs.token_id.device.type
        if head is None or not (tiled is True or _is_large(rows * steps, head)):
            with torch.autocast(kind, low, enabled=low is not None):
                z = outputs_at_responses(logits, inputs, new_cache)  # (B, T, V)
            return token_stats(z, inputs.token_id, temperature)
        with torch.autocast(kind, low, enabled=low is not None):
            h = outputs_at_responses(hidden, inputs, new_cache)  # (B, T, D)
            # Asked, not taken from `low`: a measurement may have switched autocast off.
            lowered = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if lowered else h.dtype
        weight = head.weight.to(dtype) if lowered else head.weight
        return linear_token_stats(h.to(dtype), weight, inputs.token_id, temperature)

    return score


def call(module: Any, read: tuple[Tensor, Tensor, Tensor, int, Any], known: set[str]) -> Any:
    """What a model of transformers gives for `Forward`'s arguments; of those that not all of them
    take, the ones in `known`."""
    ids, seen, position, keep, cache = read
    some = {"position_ids": position, "logits_to_keep": keep}
    given = {name: value for name, value in some.items() if name in known}
    if cache is not None:
        given["past_key_values"] = cache
    return module(input_ids=ids, attention_mask=seen, use_cache=cache is not None, **given)


def _is_large(tokens: int, head: nn.Linear) -> bool:
    return tokens * head.weight.shape[0] * 4 > TILED_ABOVE


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The output head where logits = hidden @ weight.T and nothing else; None where they are not.

    Its parts say so, and one token read shows that no scale comes after (a cap would not show).
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    base: Any = getattr(model, "base_model", None)
    config = getattr(model, "config", None)
    config = getattr(config, "get_text_config", lambda: config)()
    if type(head) is not nn.Linear or head.bias is not None or base in (None, model):
        return None
    if getattr(config, "final_logit_softcapping", None) is not None:
        return None
    token = torch.zeros(1, 1, dtype=torch.long, device=head.weight.device)
    with torch.no_grad(), untouched_rng(model), without_dropout(model):
        hidden = getattr(base(input_ids=token, use_cache=False), "last_hidden_state", None)
        if hidden is None:
            return None
        logits = model(input_ids=token, use_cache=False).logits
        same = torch.allclose(logits, head(hidden), rtol=1e-3, atol=1e-6)
    return head if same else None
