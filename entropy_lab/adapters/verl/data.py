"""From the data of one verl minibatch to a TokenBatch."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from entropy_lab.adapters.verl.identity import Identity, prompt_group
from entropy_lab.stats import state_hash
from entropy_lab.types import TokenBatch

ROW = "entropy_lab_row"  # where a row of a micro-batch stands in the minibatch
_NEEDED = ("prompts", "responses", "response_mask", "advantages", "old_log_probs")
_REWARDS = ("token_level_scores", "rm_scores", "token_level_rewards")


def is_policy_update(data: Any) -> bool:
    """Whether a minibatch trains a policy; that of a critic or of fine-tuning lacks something."""
    known = set(data.keys())
    return all(name in known for name in _NEEDED)


def padded(value: Tensor) -> Tensor:
    """A nested tensor of B rows as (B, T), filled with zeros on the right; others as they are."""
    if not value.is_nested:
        return value
    return torch.nn.utils.rnn.pad_sequence(list(value.detach().unbind()), batch_first=True)


def lengths(value: Tensor) -> Tensor:
    """The length of each row of a nested tensor, int64 (B,)."""
    return torch.tensor([len(row) for row in value.unbind()], dtype=torch.int64)


def token_batch(
    data: Any, identity: Identity, *, step: int, age: int, seed: int, ends: Sequence[int] = ()
) -> TokenBatch:
    """All responses of this rank's minibatch, on the CPU, (B, T) with T the longest of them.

    Prompts and responses are nested (verl's trainer v1) or padded beside attention_mask (v0).
    old_entropy, rollout_logp, reward and rollout_weight are there where verl passes them. ends:
    the tokens that end a response; those that end otherwise are `truncated`.
    """
    token_id = padded(data["responses"]).cpu()
    mask = _wide(data, "response_mask", token_id).bool()
    prompt_id, prompt_mask = _prompts(data)
    names = per_row(data, "uid")
    state = state_hash(prompt_id, prompt_mask, token_id)
    group = prompt_group([str(n) for n in names]) if names else state[:, 0].clone()
    return TokenBatch(
        token_id=token_id,
        mask=mask,
        advantage=_wide(data, "advantages", token_id).float(),
        old_logp=_wide(data, "old_log_probs", token_id).float(),
        old_entropy=_optional(data, "entropy", token_id),
        rollout_logp=_optional(data, "rollout_log_probs", token_id),
        rollout_weight=_optional(data, "rollout_is_weights", token_id),
        state=state,
        uid=identity.uids(_keys(data, token_id, mask, group)),
        group=group,
        reward=_reward(data, token_id, mask),
        truncated=_truncated(data, token_id, ends),
        age=age,
        step=step,
        seed=seed,
    )


def per_row(data: Any, name: str) -> list[Any] | None:
    """The values of a field that has one for each row; None where there are none."""
    if name not in data.keys():
        return None
    value = data.get(name)
    found = value.tolist() if hasattr(value, "tolist") else value
    return found if isinstance(found, list) and len(found) == len(data) else None


def _wide(data: Any, name: str, like: Tensor) -> Tensor:
    """A response field in the width of the responses; what a shorter one lacks is 0."""
    value = padded(data[name]).cpu()
    if value.shape[0] != like.shape[0] or value.ndim != 2:
        raise ValueError(f"verl's {name} has shape {tuple(value.shape)}, not {tuple(like.shape)}")
    short = like.shape[1] - value.shape[1]
    return torch.nn.functional.pad(value, (0, short)) if short > 0 else value[:, : like.shape[1]]


def _optional(data: Any, name: str, like: Tensor) -> Tensor | None:
    return _wide(data, name, like).float() if name in data.keys() else None


def _prompts(data: Any) -> tuple[Tensor, Tensor]:
    """Prompt tokens (B, P) and which of them are real."""
    prompts = data["prompts"]
    ids = padded(prompts).cpu()
    if prompts.is_nested:
        return ids, torch.arange(ids.shape[1]) < lengths(prompts)[:, None]
    return ids, data["attention_mask"][:, : ids.shape[1]].cpu().bool()


def _keys(data: Any, token_id: Tensor, mask: Tensor, group: Tensor) -> list[Hashable]:
    """What tells one response from another: verl's session number, or else its tokens."""
    sessions = per_row(data, "session_id")
    if sessions:
        return list(zip(group.tolist(), sessions, strict=True))
    digests = []
    for tokens, valid in zip(token_id, mask, strict=True):
        end = int(valid.nonzero().max()) + 1 if valid.any() else 0  # whatever the padding
        seen = torch.stack([tokens[:end], valid[:end].long()]).numpy().tobytes()
        digests.append(hashlib.blake2b(seen, digest_size=16).digest())
    return list(zip(group.tolist(), digests, strict=True))


def _reward(data: Any, token_id: Tensor, mask: Tensor) -> Tensor | None:
    for name in _REWARDS:
        if name in data.keys():
            return torch.where(mask, _wide(data, name, token_id).float(), 0.0).sum(1)
    return None


def _truncated(data: Any, token_id: Tensor, ends: Sequence[int]) -> Tensor | None:
    if not ends:
        return None
    responses = data["responses"]
    if responses.is_nested:
        length = lengths(responses)
    else:
        width = data["prompts"].shape[1]
        length = data["attention_mask"][:, width:].sum(1).cpu().long()
    last = token_id.gather(1, (length - 1).clamp(min=0)[:, None])[:, 0]
    return ~torch.isin(last, torch.tensor(list(ends)))
