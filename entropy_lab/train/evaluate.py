"""Evaluation on held-out problems: avg@k, pass@k, and the entropy to set them against."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from entropy_lab.probe.scorer import untouched_rng, without_dropout
from entropy_lab.record import write_evals
from entropy_lab.train.agreement import check_agreement
from entropy_lab.train.gather import score_responses
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.randomness import sampling_seed
from entropy_lab.train.rollout import Responses
from entropy_lab.train.tasks import held_out_problems

if TYPE_CHECKING:
    from entropy_lab.train.parts import Parts


def evaluate_if_due(parts: Parts, run_dir: Path) -> float:
    """Evaluate the present weights where `[eval]` asks for it; the seconds it took, 0 if not.

    That is before the first rollout, after each `every` of them and after the last. The rows go to
    RUN/evals.parquet, and no later than the checkpoint of these weights: a run that continues from
    a checkpoint has all evaluations up to it. Nothing of the training is touched.
    """
    every, train = parts.config.eval.every, parts.config.train
    rollout, within = divmod(parts.probe.step, train.minibatches)
    if not every or within or (rollout % every and rollout != train.rollouts):
        return 0.0
    started = time.perf_counter()
    write_evals(run_dir, evaluate(parts, parts.probe.step))
    return time.perf_counter() - started


def evaluate(parts: Parts, step: int) -> list[dict[str, Any]]:
    """The rows of evals.parquet for the present weights, after `step` optimizer steps.

    `samples` responses to each of the same `problems` held-out problems, drawn at eval.temperature;
    a pure function of weights, settings and run.seed. entropy, in nats, is the mean over all tokens
    of these responses of the entropy of softmax(logits), whatever temperature drew them.
    """
    config, e = parts.config, parts.config.eval
    max_tokens = e.max_tokens or config.rollout.max_tokens
    problems = held_out_problems(parts.task, e.problems)
    # As many responses at a time as a rollout has, since these are known to fit.
    size = max(1, config.rollout.prompts * config.rollout.group_size // e.samples)
    right: list[int] = []
    reward, entropy, tokens = 0.0, 0.0, 0
    for first in range(0, len(problems), size):
        part = problems[first : first + size]
        responses = parts.engine.generate(
            parts.model,
            [encode_prompt(parts.tokenizer, p.prompt) for p in part],
            n=e.samples,
            max_tokens=max_tokens,
            temperature=e.temperature,
            seed=sampling_seed(config.run.seed, f"eval {step}", first),
        )
        scored = score_responses(responses, part, parts.task, parts.tokenizer)
        right += (scored.reward == 1).view(len(part), e.samples).sum(1).tolist()
        reward += float(scored.reward.double().sum())
        entropy += summed_entropy(parts, responses)
        tokens += int(responses.mask.sum())
    shared = {
        "benchmark": f"{parts.task.name}_heldout",
        "step": step,
        "avg_at_k": reward / (len(problems) * e.samples),
        "temperature": e.temperature,
        "top_p": e.top_p,
        "max_tokens": max_tokens,
        "samples": e.samples,
        "entropy": entropy / tokens,
    }
    return [shared | row for row in pass_rows(right, e.samples, e.max_k or e.samples)]


@torch.no_grad()
def summed_entropy(parts: Parts, responses: Responses) -> float:
    """The sum over response tokens of the entropy of softmax(logits), nats, at temperature 1.

    Raises RunError where the responses were drawn from softmax(logits) of another policy.
    """
    score = make_score(parts.model, 1.0, parts.config.model.autocast)
    size, total = parts.config.train.micro_batch, 0.0
    logp: list[torch.Tensor] = []
    with untouched_rng(parts.model), without_dropout(parts.model):
        for first in range(0, len(responses.mask), size):
            rows = slice(first, first + size)
            stats = score(model_inputs(responses, rows))  # (B, T)
            total += float(stats.entropy[responses.mask[rows]].double().sum())
            logp.append(stats.logp)
    e = parts.config.eval
    if e.temperature == e.top_p == 1:  # else the trainer's logp would take a pass of its own
        check_agreement(responses, torch.cat(logp), parts.engine)
    return total


def pass_rows(right: Sequence[int], samples: int, max_k: int) -> list[dict[str, Any]]:
    """{n, k, pass_at_k, pass_at_k_se} for k = 1, 2, 4, ... up to max_k.

    right: of each of the n problems, how many of its `samples` responses are right. pass_at_k is
    the mean over problems, its standard error (None for one problem) that of the mean.
    """
    rows = []
    for k in (2**i for i in range(max_k.bit_length())):
        values = np.array([pass_at_k(samples, c, k) for c in right])
        n = len(values)
        se = float(values.std(ddof=1) / n**0.5) if n > 1 else None
        rows.append({"n": n, "k": k, "pass_at_k": float(values.mean()), "pass_at_k_se": se})
    return rows


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k responses is right, from n of which c are (arXiv 2107.03374).

    1 - C(n-c, k) / C(n, k), unbiased for independent responses. In whole numbers up to the one
    division, so exact to the last bit for any n. Raises ValueError unless 1 <= k <= n and
    0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, got n = {n}, c = {c}, k = {k}")
    every = comb(n, k)
    return (every - comb(n - c, k)) / every
