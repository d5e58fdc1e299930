"""A forward pass that reads once what rows have in common: all of them, or their prompt."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from entropy_lab.probe.inputs import take_rows
from entropy_lab.probe.scorer import untouched_rng, without_dropout
from entropy_lab.train.rollout.sampling import only_keys_and_values

if TYPE_CHECKING:
    from entropy_lab.train.policy import Inputs

# forward(ids (B, n), seen (B, past + n), position (B, n), keep, cache) -> (B, >= keep, ·), the
# outputs at the last positions, `keep` of them at least.
Forward = Callable[[Tensor, Tensor, Tensor, int, Any], Tensor]
NewCache = Callable[[], Any]


def distinct(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """(first, which): the first row (D,) of each kind, in their order, and the kind (B,) of every
    row, where rows of the parts (B, ·) are of a kind if they are equal in all of them."""
    device, rows = parts[0].device, torch.cat(parts, dim=1).cpu().numpy()
    kinds: dict[bytes, int] = {}
    first, which = [], []
    for index, row in enumerate(rows):
        kind = kinds.setdefault(row.tobytes(), len(kinds))
        if kind == len(first):
            first.append(index)
        which.append(kind)
    return torch.tensor(first, device=device), torch.tensor(which, device=device)


def without_repeats(inputs: Inputs) -> tuple[Inputs, Tensor | None]:
    """The rows that differ, and which of them each given row is; None where all differ."""
    first, which = distinct(inputs.input_id, inputs.seen)
    if len(first) == len(which):
        return inputs, None
    return take_rows(inputs, first), which


def outputs_at_responses(forward: Forward, inputs: Inputs, new_cache: NewCache | None) -> Tensor:
    """The outputs (B, T, ·) that predict the response tokens: position t predicts token t+1.

    With `new_cache`, prompts that rows share are read once, into keys and values that the rows go
    on from, where there are at most half as many prompts as rows: G P + B (T-1) tokens in place of
    B (P+T). Gradients flow through the cache.
    """
    steps = inputs.token_id.shape[1]
    width = inputs.input_id.shape[1] - steps
    read = inputs.input_id, inputs.seen, inputs.position
    if new_cache is not None:
        first, which = distinct(inputs.input_id[:, :width], inputs.seen[:, :width])
        if 2 * len(first) <= len(which):
            cache = new_cache()
            ids, seen, position = (x[first, :width] for x in read)
            start = _take(forward(ids, seen, position, 1, cache)[:, -1:], which)
            if steps == 1:
                return start
            for layer in cache.layers:
                if layer.get_seq_length():
                    layer.keys, layer.values = _take(layer.keys, which), _take(layer.values, which)
            ids, seen, position = (x[:, :-1] for x in read)
            rest = forward(ids[:, width:], seen, position[:, width:], steps - 1, cache)
            return torch.cat([start, rest], dim=1)
    # The last output predicts past the end.
    return forward(*read, steps + 1, None)[:, -steps - 1 : -1]


def _take(x: Tensor, index: Tensor) -> Tensor:
    # On a GPU the backward of index_select adds in any order; on a CPU that of x[index] is slow.
    return x.index_select(0, index) if x.device.type == "cpu" else x[index]


def cache_of(model: nn.Module, forward: Forward) -> NewCache | None:
    """A maker of caches for `outputs_at_responses`; None where the model has to read whole rows.

    That is a model without a cache of mere keys and values, one whose layers are recomputed in the
    backward pass, or one whose outputs with a cache are not those without.
    """
    config: Any = getattr(model, "config", None)
    recomputed = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    if config is None or recomputed or "past_key_values" not in signature(model.forward).parameters:
        return None
    from transformers import DynamicCache

    def new_cache() -> Any:
        return DynamicCache(config=config)

    if not only_keys_and_values(new_cache()):
        return None
    return new_cache if _agrees(model, forward, new_cache) else None


def _agrees(model: nn.Module, forward: Forward, new_cache: NewCache) -> bool:
    """Whether four rows that share a prompt get the outputs of whole rows from it."""
    from entropy_lab.train.policy import Inputs

    device = next(model.parameters()).device
    token = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2]], device=device)
    ids = torch.cat([torch.tensor([[0, 2, 1]], device=device).expand(4, 3), token], dim=1)
    seen = torch.ones_like(ids)
    seen[:, 0] = 0
    position = (seen.cumsum(1) - 1).clamp(min=0)
    inputs = Inputs(ids, seen, position, token)
    with torch.no_grad(), untouched_rng(model), without_dropout(model):
        whole, shared = (outputs_at_responses(forward, inputs, c) for c in (None, new_cache))
    coarse = whole.dtype not in (torch.float32, torch.float64)
    off = (whole.double() - shared.double()).norm() / whole.double().norm()
    return float(off) <= (3e-2 if coarse else 1e-3)
