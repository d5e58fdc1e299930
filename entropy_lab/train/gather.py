"""From sampled responses to the micro-batches of a rollout's optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_lab.interventions import Intervention
from entropy_lab.loss import CorrectionLevel, sampler_weight
from entropy_lab.probe.scorer import Scorer
from entropy_lab.probe.world import ALONE, Alone, measured_by_all
from entropy_lab.stats import state_hash
from entropy_lab.train.layout import Layout
from entropy_lab.train.policy import Inputs, Micro, model_inputs
from entropy_lab.train.rewards import Rewarder
from entropy_lab.train.rollout import Responses
from entropy_lab.train.tasks import Problem, prompt_text
from entropy_lab.types import TokenBatch, TokenStats


@dataclass(frozen=True)
class Scored:
    """The responses of one rollout with their texts and rewards (B,).

    accuracy (B,): how right they are, before any shaping; note: why, "" where nothing is to be
    said. left_out: groups that were drawn and are not trained on; facts: numbers about the draw
    for the log.
    """

    responses: Responses
    problems: list[Problem]
    texts: list[str]
    reward: Tensor
    accuracy: Tensor
    note: list[str]
    group_size: int
    left_out: Scored | None = None
    facts: dict[str, float] | None = None

    def groups(self, chosen: Sequence[int]) -> Scored:
        """The prompt groups of these numbers, in that order."""
        n = self.group_size
        rows = [g * n + i for g in chosen for i in range(n)]
        index = torch.tensor(rows, dtype=torch.long, device=self.reward.device)
        problems, texts = [self.problems[g] for g in chosen], [self.texts[i] for i in rows]
        return Scored(
            self.responses.rows(index),
            problems,
            texts,
            self.reward[index],
            self.accuracy[index],
            [self.note[i] for i in rows],
            n,
        )

    @staticmethod
    def cat(parts: Sequence[Scored]) -> Scored:
        """All groups of several draws."""
        return Scored(
            Responses.cat([p.responses for p in parts]),
            [problem for p in parts for problem in p.problems],
            [text for p in parts for text in p.texts],
            torch.cat([p.reward for p in parts]),
            torch.cat([p.accuracy for p in parts]),
            [note for p in parts for note in p.note],
            parts[0].group_size,
        )


def score_responses(
    responses: Responses,
    problems: list[Problem],
    rewarder: Rewarder,
    tokenizer: Any,
    *,
    max_tokens: int,
    seed: int,
) -> Scored:
    """Decode every response and grade it; max_tokens: the most that one could have."""
    group_size = len(responses.token_id) // len(problems)
    ids = [t[m].tolist() for t, m in zip(responses.token_id, responses.mask, strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    each = [problems[i // group_size] for i in range(len(texts))]
    lengths = [len(row) for row in ids]
    graded = rewarder.grade(texts, each, lengths=lengths, max_tokens=max_tokens, seed=seed)
    reward, accuracy = (
        torch.tensor(v, device=responses.token_id.device) for v in (graded.reward, graded.accuracy)
    )
    return Scored(responses, problems, texts, reward, accuracy, graded.note, group_size)


class Rules(NamedTuple):
    """How the responses of a rollout become micro-batches, by the settings of a run.

    layout: which of them share a pass; groups: how many ids of prompt groups a rollout may use;
    mask_truncated: responses without an EOS stay out of the loss; correction: level and cap of
    `sampler_weight`, None for none.
    """

    layout: Layout
    groups: int
    mask_truncated: bool = False
    correction: tuple[CorrectionLevel, float] | None = None


def make_micros(
    scored: Scored,
    scorer: Scorer,
    method: Intervention,
    rules: Rules,
    *,
    rollout: int,
    seed: int,
    step: int,
    minibatches: int,
    forward: Callable[[Any], TokenStats] | None = None,
    world: Alone = ALONE,
) -> list[list[Micro]]:
    """The rollout's minibatches, consecutive responses each, as lists of micro-batches.

    old_logp and old_entropy come from the trainer's own pass over each micro-batch, in the very
    layout of the loss; advantages from the whole rollout. A response that is masked out of the loss
    has no token in `batch.mask`, so no mean counts it; its reward is in its group's baseline.
    forward: the loss forward, which serves as that pass of the first micro-batch, before whose loss
    no weight moves. Only that one keeps its graph, so no more memory is needed than for one. Of
    several ranks each measures its own micro-batches of every minibatch, and knows all.
    """
    responses, count = scored.responses, len(scored.reward)
    index = torch.arange(count, device=responses.token_id.device)
    known = {
        "state": state_hash(responses.prompt_id, responses.prompt_mask, responses.token_id),
        "uid": (rollout << 32) + index,
        "group": rollout * rules.groups + index // scored.group_size,
        "reward": scored.reward,
    }

    def micro(
        rows: Tensor | slice, part: Responses, inputs: Inputs, old: TokenStats, age: int
    ) -> Micro:
        width = part.mask.shape[1]
        own = {k: v[rows, :width] if v.ndim == 2 else v[rows] for k, v in known.items()}
        own |= _measured(part, old, rules)
        batch = TokenBatch(token_id=part.token_id, **own, seed=seed, age=age, step=step + age)
        return Micro(inputs, batch)

    size = count // minibatches
    steps = [rules.layout.micros(responses, a, a + size) for a in range(0, count, size)]
    made = []
    for age, step_rows in enumerate(steps):
        parts = [rules.layout.cut(responses, rows) for rows in step_rows]
        inputs = [model_inputs(part) for part in parts]
        graph = forward(inputs[0]) if forward is not None and age == 0 else None
        first = [] if graph is None else [graph.detach()]
        olds = first + measured_by_all(scorer, inputs[len(first) :], world)
        told = zip(step_rows, parts, inputs, olds, strict=True)
        made.append([micro(*four, age) for four in told])
        if graph is not None:
            made[0][0] = replace(made[0][0], forward=graph)
    return advantages(method, made)


def _measured(part: Responses, old: TokenStats, rules: Rules) -> dict[str, Any]:
    """Fields of the batch (B, T) of one micro-batch that the trainer's own pass over it decides."""
    mask, weight = part.mask, None
    if rules.correction is not None and part.logp is not None:
        weight = sampler_weight(old.logp, part.logp, mask, *rules.correction)
    if rules.mask_truncated:
        mask = mask & ~part.truncated[:, None]
    return {
        "mask": mask,
        "advantage": torch.zeros_like(old.logp),
        "old_logp": old.logp,
        "old_entropy": old.entropy,
        "rollout_logp": part.logp,
        "rollout_weight": weight,
        "truncated": part.truncated,
    }


def advantages(method: Intervention, steps: list[list[Micro]]) -> list[list[Micro]]:
    """The minibatches of a rollout with the method's advantages, from all of their responses.

    Those that are masked out of the loss count as well, with all the tokens that were sampled.
    """
    whole = TokenBatch.cat([replace(m.batch, mask=m.sampled()) for part in steps for m in part])
    advantage = method.advantages(whole)
    first, out = 0, []
    for part in steps:
        out.append([])
        for m in part:
            size, width = m.batch.mask.shape
            own = advantage[first : first + size, :width]
            out[-1].append(replace(m, batch=replace(m.batch, advantage=own)))
            first += size
    return out


def sample_rows(
    scored: Scored, micros: list[list[Micro]], inclusion: Any, rollout: int, step: int
) -> dict[str, Any]:
    """The rollout's rows of the samples table, by uid; inclusion(size) is a micro-batch's
    probability. Without a token in the loss a response is not `trained`, and its inclusion_prob
    null."""
    told = [(m, age, number) for age, part in enumerate(micros) for number, m in enumerate(part)]
    whole = TokenBatch.cat([m.batch for m, _, _ in told])
    sampled = TokenBatch.cat([replace(m.batch, mask=m.sampled()) for m, _, _ in told]).mask
    assert whole.uid is not None and whole.group is not None and whole.truncated is not None
    length = sampled.sum(1)
    mean_advantage = torch.where(sampled, whole.advantage, 0.0).sum(1) / length.clamp(min=1)
    # Everything below is by micro-batch until `order` puts it back as it was drawn.
    uid = whole.uid.cpu().numpy()
    order = np.argsort(uid, kind="stable")
    trained = whole.mask.any(1).cpu().numpy()
    share = np.concatenate([np.full(len(m.batch.mask), inclusion(len(m.batch.mask)), np.float32)
                            for m, _, _ in told])  # fmt: skip
    sizes = [len(m.batch.mask) for m, _, _ in told]
    layout = {
        "minibatch": [age for _, age, _ in told],
        "micro": [number for _, _, number in told],
        "prompt_width": [m.widths().prompt for m, _, _ in told],
        "response_width": [m.widths().response for m, _, _ in told],
    }
    columns = {
        "group": whole.group.cpu().numpy(),
        "uid": uid,
        "advantage": mean_advantage.float().cpu().numpy(),
        "length": length.to(torch.int32).cpu().numpy(),
        "truncated": whole.truncated.cpu().numpy(),
        "inclusion_prob": np.where(trained, share.astype(object), np.array(None)),
        "trained": trained,
        **{name: np.repeat(np.array(values, np.int32), sizes) for name, values in layout.items()},
    }
    return _told(scored, rollout, step) | {k: v[order] for k, v in columns.items()}


def left_out_rows(scored: Scored, rollout: int, step: int, first: int, groups: int) -> dict:
    """Rows of the samples table for groups that were drawn and left out: not trained on, without
    advantage, micro-batch and inclusion_prob. first: the number of the first of these prompts;
    groups: as in `Rules`."""
    count = len(scored.reward)
    index = first * scored.group_size + np.arange(count, dtype=np.int64)
    return _told(scored, rollout, step) | {
        "group": rollout * groups + index // scored.group_size,
        "uid": (rollout << 32) + index,
        "advantage": [None] * count,
        "length": scored.responses.mask.sum(1).to(torch.int32).cpu().numpy(),
        "truncated": scored.responses.truncated.cpu().numpy(),
        "inclusion_prob": [None] * count,
        "trained": np.zeros(count, bool),
    }


def _told(scored: Scored, rollout: int, step: int) -> dict[str, Any]:
    """The columns that do not depend on what becomes of the responses."""
    count = len(scored.reward)
    problems = [scored.problems[i // scored.group_size] for i in range(count)]
    return {
        "rollout": np.full(count, rollout, np.int64),
        "prompt_id": np.array([p.prompt_id for p in problems], np.int64),
        "reward": scored.reward.float().cpu().numpy(),
        "accuracy": scored.accuracy.float().cpu().numpy(),
        "note": scored.note,
        "prompt": [prompt_text(p.prompt) for p in problems],
        "response": scored.texts,
        "step": np.full(count, step, np.int64),
    }
