"""Who a row of TRL is: identities that survive its shuffle, and the table of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Tensors that travel in TRL's dict of a rollout, one row per response: shuffled and cut with it.
OURS = "entropy_lab_"
UID, GROUP, REWARD, TRUNCATED, OLD_ENTROPY = (
    OURS + name for name in ("uid", "group", "reward", "truncated", "old_entropy")
)


@dataclass(frozen=True)
class Graded:
    """What `_calculate_rewards` saw and returned: rewards (B of all ranks, functions), and of this
    rank the prompts and the token ids of the completions."""

    rewards: Tensor
    prompts: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Rollout:
    """The responses of this rank to one batch of prompts, in the order they were generated.

    number: of the rollout; step: the optimizer step that is next. uid, group, reward, truncated:
    (B,), of all ranks' responses those that are here.
    """

    number: int
    step: int
    uid: Tensor
    group: Tensor
    reward: Tensor
    truncated: Tensor
    length: Tensor
    prompts: list[str]
    responses: list[str]
    prompt_id: np.ndarray

    def tensors(self) -> dict[str, Tensor]:
        """What is put into TRL's dict."""
        return {
            UID: self.uid,
            GROUP: self.group,
            REWARD: self.reward,
            TRUNCATED: self.truncated,
        }


def describe(
    trainer: Any, output: dict[str, Any], graded: Graded, number: int, step: int
) -> Rollout:
    """The identities of a rollout that was just generated and graded.

    uid = rollout << 32 | row over all ranks; groups are the `num_generations` rows of a prompt,
    which may lie on two ranks.
    """
    device = output["completion_ids"].device
    count = len(output["completion_ids"])
    first = trainer.accelerator.process_index * count
    row = first + torch.arange(count, device=device)  # (B,)
    weights = trainer.reward_weights.to(graded.rewards.device)
    reward = (graded.rewards * weights).nansum(1)
    reward = reward.masked_fill(graded.rewards.isnan().all(1), float("nan"))
    groups = len(graded.rewards) // trainer.num_generations
    length = torch.tensor([len(ids) for ids in graded.completion_ids], device=device)
    ends = end_tokens(trainer)
    truncated = [not ids or int(ids[-1]) not in ends for ids in graded.completion_ids]
    tokenizer = trainer._tokenizer
    responses = tokenizer.batch_decode(
        [list(ids) for ids in graded.completion_ids], skip_special_tokens=True
    )
    prompt_ids = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
    ]
    texts = [
        prompt if isinstance(prompt, str) else tokenizer.decode(ids)
        for prompt, ids in zip(graded.prompts, prompt_ids, strict=True)
    ]
    return Rollout(
        number,
        step,
        uid=(number << 32) + row,
        group=number * groups + row // trainer.num_generations,
        reward=reward[first : first + count].to(device),
        truncated=torch.tensor(truncated, device=device),
        length=length,
        prompts=texts,
        responses=responses,
        prompt_id=np.array([_hash(ids) for ids in prompt_ids], np.int64),
    )


def end_tokens(trainer: Any) -> set[int]:
    """Token ids that end a completion."""
    own = getattr(trainer, "eos_token_ids", None)
    if own is None:
        own = trainer.model.generation_config.eos_token_id
    several = own if isinstance(own, list | tuple) else [own]
    tokenizer = trainer._tokenizer
    ends = {*several, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return {int(token) for token in ends if token is not None}


def _hash(ids: Sequence[int]) -> int:
    """63 bits that stand for a prompt, the same in every run."""
    digest = hashlib.blake2b(np.array(ids, np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def loss_mask(micro: dict[str, Any]) -> Tensor:
    """The tokens that TRL's loss counts: (B, T) bool."""
    mask = micro["completion_mask"]
    if "tool_mask" in micro:
        mask = mask * micro["tool_mask"]
    return mask.bool()


def sample_columns(
    rollout: Rollout,
    buffered: Sequence[dict[str, Any]],
    place: Sequence[tuple[int, int]],
    inclusion: Callable[[int], float],
) -> dict[str, Any]:
    """Rows of the samples table for a rollout whose micro-batches are known.

    place: for each micro-batch the optimizer step within the rollout and its number in it;
    inclusion(size): the chance that a response of a micro-batch of `size` is measured.
    """
    parts = []
    for micro, (minibatch, number) in zip(buffered, place, strict=True):
        mask = loss_mask(micro)
        size, width = mask.shape
        advantage = per_token(micro["advantages"], mask)
        length = mask.sum(1)
        trained = mask.any(1).cpu().numpy()
        share = np.full(size, inclusion(size), np.float32).astype(object)
        parts.append({
            "uid": micro[UID].cpu().numpy(),
            "group": micro[GROUP].cpu().numpy(),
            "reward": micro[REWARD].float().cpu().numpy(),
            "truncated": micro[TRUNCATED].cpu().numpy(),
            "advantage": (advantage.sum(1) / length.clamp(min=1)).float().cpu().numpy(),
            "inclusion_prob": np.where(trained, share, np.array(None)),
            "trained": trained,
            "minibatch": np.full(size, minibatch, np.int32),
            "micro": np.full(size, number, np.int32),
            "prompt_width": np.full(size, micro["prompt_ids"].shape[1], np.int32),
            "response_width": np.full(size, width, np.int32),
        })  # fmt: skip
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    row = columns["uid"] - rollout.uid.cpu().numpy()[0]  # where each stood before the shuffle
    columns |= {
        "step": np.full(len(row), rollout.step, np.int64),
        "rollout": np.full(len(row), rollout.number, np.int64),
        "prompt_id": rollout.prompt_id[row],
        "length": rollout.length.to(torch.int32).cpu().numpy()[row],
        "prompt": [rollout.prompts[i] for i in row],
        "response": [rollout.responses[i] for i in row],
    }
    order = np.argsort(columns["uid"], kind="stable")
    return {
        name: [values[i] for i in order] if isinstance(values, list) else values[order]
        for name, values in columns.items()
    }


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages (B,), (B, 1) or (B, T) on the tokens of `mask`: (B, T) float, 0 outside."""
    wide = advantages.unsqueeze(1) if advantages.ndim == 1 else advantages
    return torch.where(mask, wide.float().expand(mask.shape), 0.0)

