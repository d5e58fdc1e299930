"""The sampling loop of transformers' `generate`, without the responses that have ended."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from entropy_lab.errors import RunError

# Products over fewer rows run in other kernels, so that a row's last bits would depend on how many
# are left; from here on they do not (one thread).
_FEWEST = 8
# Copying keys and values pays once so many of the rows have ended.
_ENDED = 1 / 16


def sample(
    model: Any,
    prompt_id: Tensor,
    prompt_mask: Tensor,
    n: int,
    settings: Any,
    told: bool = False,
    within: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """n responses (B, T), B = n G, to each of the left-padded prompts (G, P), padded at their ends.

    With `told`, log softmax(logits / temperature) of their tokens (B, T) beside them, 0 at padding.

    Each token is drawn from softmax(logits / temperature) with torch's global generator: argmax of
    p / q, q exponential. A prompt is read once. Rows that have ended are dropped from the passes,
    not from the draws, so these are the draws of `model.generate`. A model whose cache is more
    than keys and values goes through `generate` itself.
    within: (first, count) where these are the prompts first, first + 1, ... of `count`: they get
    the draws that they would have among all of them.
    Raises ValueError for a temperature that is not positive, RunError for logits not finite.
    """
    from transformers import DynamicCache

    if not settings.temperature > 0:
        raise ValueError(f"temperature is {settings.temperature}: sampling needs one above 0")
    cache = DynamicCache(config=model.config)
    if within is None:
        within = (0, len(prompt_id))
    elif not only_keys_and_values(cache):
        raise RunError(
            f"{type(model).__name__} is sampled from by `generate`, which several processes cannot "
            "share: start it without torchrun"
        )
    if not only_keys_and_values(cache):
        return generate(model, prompt_id, prompt_mask, n, settings, told)
    forward, seen = _forward(model, cache), prompt_mask.long()
    ends = torch.tensor(settings.eos_token_id, device=prompt_id.device)
    rows = torch.arange(len(prompt_id) * n, device=prompt_id.device)  # (R,) those in the pass
    out = prompt_id.new_full((len(rows), settings.max_new_tokens), settings.pad_token_id)  # (B, T)
    logp = torch.zeros_like(out, dtype=torch.float32) if told else None
    running = torch.ones_like(rows, dtype=torch.bool)
    first = within[0] * n
    logits = forward(prompt_id, seen).repeat_interleave(n, dim=0)  # (R, V)
    cache.batch_repeat_interleave(n)
    seen = seen.repeat_interleave(n, dim=0)  # (R, P)
    for step in range(settings.max_new_tokens):
        token = _draw(logits, first + rows, within[1] * n, settings.temperature)  # (R,)
        out[rows, step] = token.where(running, settings.pad_token_id)
        if logp is not None:
            own = drawn_logp(logits, token, settings.temperature)
            logp[rows, step] = own.where(running, 0.0)
        running = running & ~torch.isin(token, ends)
        left = int(running.sum())
        if left == 0 or step + 1 == out.shape[1]:
            break
        if len(rows) > _FEWEST and left <= (1 - _ENDED) * len(rows):
            kept = (~running).long().argsort(stable=True)[: max(left, _FEWEST)].sort().values
            cache.batch_select_indices(kept)
            rows, running, token, seen = rows[kept], running[kept], token[kept], seen[kept]
        seen = torch.cat([seen, seen.new_ones(len(rows), 1)], dim=1)
        logits = forward(token[:, None], seen)
    return out[:, : step + 1], None if logp is None else logp[:, : step + 1]


def drawn_logp(logits: Tensor, token: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) of one token (R,) in each row of logits (R, V), nats."""
    return (logits / temperature).log_softmax(-1).gather(1, token[:, None])[:, 0]


def only_keys_and_values(cache: Any) -> bool:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return all(type(x) in (DynamicLayer, DynamicSlidingWindowLayer) for x in cache.layers)


def _forward(model: Any, cache: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """forward(new ids (R, n), mask of all tokens so far (R, L)) -> last logits (R, V), float32."""
    known = signature(model.forward).parameters

    def forward(given: Tensor, seen: Tensor) -> Tensor:
        position = (seen.cumsum(1) - 1).clamp_min(0)[:, -given.shape[1] :]
        some = {"position_ids": position, "logits_to_keep": 1}
        logits = model(
            input_ids=given,
            attention_mask=seen,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in some.items() if name in known},
        ).logits
        return logits[:, -1].float()

    return forward


def _draw(logits: Tensor, rows: Tensor, count: int, temperature: float) -> Tensor:
    """A token (R,) for each of `rows`, by random numbers that all `count` rows have their own of,
    as `torch.multinomial` takes them."""
    p = (logits if temperature == 1.0 else logits / temperature).softmax(-1)  # (R, V)
    if bool(p.isnan().any()):
        raise _diverged()
    q = p.new_empty(count, p.shape[1]).exponential_()
    return (p / (q if len(rows) == count else q[rows])).argmax(-1)


def generate(
    model: Any,
    prompt_id: Tensor,
    prompt_mask: Tensor,
    n: int,
    settings: Any,
    told: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `sample` gives, from `model.generate`, whatever the settings; told: for samples from
    the whole softmax."""
    try:
        out = model.generate(
            input_ids=prompt_id.repeat_interleave(n, dim=0),
            attention_mask=prompt_mask.long().repeat_interleave(n, dim=0),
            generation_config=settings,
            return_dict_in_generate=True,
            output_logits=told,
        )
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise _diverged() from error
    token = out.sequences[:, prompt_id.shape[1] :]
    if not told:
        return token, None
    own = [drawn_logp(z, token[:, t], settings.temperature) for t, z in enumerate(out.logits)]
    ends = torch.isin(token, torch.tensor(settings.eos_token_id, device=token.device))
    return token, torch.stack(own, 1).masked_fill(ends.cumsum(1) - ends.long() > 0, 0.0)


def _diverged() -> RunError:
    return RunError(
        "cannot sample: the model's logits are not finite, so training has diverged; "
        "lower optimizer.lr and start anew"
    )
