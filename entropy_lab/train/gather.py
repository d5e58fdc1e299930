"""From sampled responses to the micro-batches of a rollout's optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_lab.interventions import Intervention
from entropy_lab.probe.scorer import Scorer
from entropy_lab.stats import state_hash
from entropy_lab.train.policy import Inputs, Micro, model_inputs
from entropy_lab.train.rollout import Responses
from entropy_lab.train.tasks import Problem, Task, prompt_text
from entropy_lab.types import TokenBatch


@dataclass(frozen=True)
class Scored:
    """The responses of one rollout with their texts and rewards (B,)."""

    responses: Responses
    problems: list[Problem]
    texts: list[str]
    reward: Tensor
    group_size: int


def score_responses(
    responses: Responses, problems: list[Problem], task: Task, tokenizer: Any
) -> Scored:
    """Decode every response and ask the task for its reward."""
    group_size = len(responses.token_id) // len(problems)
    ids = [t[m].tolist() for t, m in zip(responses.token_id, responses.mask, strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    rewards = [task.reward(text, problems[i // group_size]) for i, text in enumerate(texts)]
    reward = torch.tensor(rewards, device=responses.token_id.device)
    return Scored(responses, problems, texts, reward, group_size)


def make_micros(
    scored: Scored,
    scorer: Scorer,
    method: Intervention,
    *,
    rollout: int,
    seed: int,
    step: int,
    size: int,
    minibatches: int,
) -> list[list[Micro]]:
    """The rollout's minibatches, each a list of micro-batches of at most `size` responses.

    old_logp and old_entropy come from the trainer's own pass over each micro-batch, in the very
    layout of the loss; advantages from the whole rollout.
    """
    responses, count = scored.responses, len(scored.reward)
    state = state_hash(responses.prompt_id, responses.prompt_mask, responses.token_id)
    index = torch.arange(count, device=responses.token_id.device)
    group = rollout * len(scored.problems) + index // scored.group_size
    per_minibatch = count // minibatches
    plan = [
        [slice(a, min(a + size, first + per_minibatch))
         for a in range(first, first + per_minibatch, size)]
        for first in range(0, count, per_minibatch)
    ]  # fmt: skip

    def micro(rows: slice) -> Micro:
        inputs = model_inputs(responses, rows)
        old = scorer.measure(inputs)
        batch = TokenBatch(
            token_id=responses.token_id[rows],
            mask=responses.mask[rows],
            advantage=torch.zeros_like(old.logp),
            old_logp=old.logp,
            old_entropy=old.entropy,
            state=state[rows],
            uid=(rollout << 32) + index[rows],
            group=group[rows],
            reward=scored.reward[rows],
            truncated=responses.truncated[rows],
            seed=seed,
        )
        return Micro(inputs, batch)

    return advantages(
        method,
        [
            [Micro(m.inputs, replace(m.batch, age=age, step=step + age)) for m in map(micro, part)]
            for age, part in enumerate(plan)
        ],
    )


def advantages(method: Intervention, steps: list[list[Micro]]) -> list[list[Micro]]:
    """The minibatches of a rollout with the method's advantages, from all of their responses."""
    advantage = method.advantages(TokenBatch.cat([m.batch for part in steps for m in part]))
    first, out = 0, []
    for part in steps:
        out.append([])
        for m in part:
            rows = slice(first, first + len(m.batch.mask))
            out[-1].append(Micro(m.inputs, replace(m.batch, advantage=advantage[rows])))
            first = rows.stop
    return out


def sample_rows(
    scored: Scored, micros: list[list[Micro]], inclusion: Any, rollout: int, step: int
) -> dict[str, Any]:
    """The rollout's rows of the samples table; inclusion(size) is a micro-batch's probability."""
    batches = [m.batch for part in micros for m in part]
    whole = TokenBatch.cat(batches)
    assert whole.uid is not None and whole.group is not None and whole.truncated is not None
    length = whole.mask.sum(1)
    mean_advantage = torch.where(whole.mask, whole.advantage, 0.0).sum(1) / length.clamp(min=1)
    problems = [scored.problems[i // scored.group_size] for i in range(len(length))]
    return {
        "rollout": np.full(len(length), rollout, np.int64),
        "group": whole.group.cpu().numpy(),
        "uid": whole.uid.cpu().numpy(),
        "prompt_id": np.array([p.prompt_id for p in problems], np.int64),
        "reward": scored.reward.float().cpu().numpy(),
        "advantage": mean_advantage.float().cpu().numpy(),
        "length": length.to(torch.int32).cpu().numpy(),
        "truncated": whole.truncated.cpu().numpy(),
        "inclusion_prob": np.concatenate(
            [np.full(len(b.mask), inclusion(len(b.mask)), np.float32) for b in batches]
        ),
        "prompt": [prompt_text(p.prompt) for p in problems],
        "response": scored.texts,
        "step": np.full(len(length), step, np.int64),
    }


_INPUTS = ("input_id", "seen", "position", "token_id")
_BATCH = ("mask", "advantage", "old_logp", "old_entropy", "state", "uid", "group", "reward",
          "truncated")  # fmt: skip


def pack(micros: list[Micro], name: str) -> dict[str, Tensor]:
    """Micro-batches of one rollout as tensors NAME.field, for a checkpoint."""
    inputs = {f"{name}.{k}": [getattr(m.inputs, k) for m in micros] for k in _INPUTS}
    batch = {f"{name}.{k}": [getattr(m.batch, k) for m in micros] for k in _BATCH}
    return {k: torch.cat(v) for k, v in {**inputs, **batch}.items()}


def unpack(
    tensors: dict[str, Tensor], name: str, size: int, *, age: int = 0, step: int = 0, seed: int = 0
) -> list[Micro]:
    """What `pack` was given, in micro-batches of at most `size` responses."""
    mine = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    micros = []
    for a in range(0, len(mine["uid"]), size):
        part = {k: v[a : a + size] for k, v in mine.items()}
        fields: dict[str, Any] = {k: part[k] for k in _BATCH if k in part}
        batch = TokenBatch(token_id=part["token_id"], **fields, age=age, step=step, seed=seed)
        micros.append(Micro(Inputs(**{k: part[k] for k in _INPUTS}), batch))
    return micros
