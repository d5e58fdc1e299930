"""Asking a policy the problems of a benchmark: responses in, a row for each of them out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from entropy_lab.probe.scorer import Score, untouched_rng, without_dropout
from entropy_lab.train.agreement import check_agreement
from entropy_lab.train.config import Config
from entropy_lab.train.gather import score_responses
from entropy_lab.train.layout import Layout
from entropy_lab.train.pass_at_k import pass_rows
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.randomness import sampling_seed
from entropy_lab.train.rewards import Rewarder
from entropy_lab.train.rollout import Responses, RolloutEngine
from entropy_lab.train.tasks import Problem, prompt_text


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: `samples` to each problem; temperature 0 takes the likeliest."""

    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Examinee:
    """The policy that is asked, and the rewarder that grades it.

    batch: responses drawn at a time; micro_batch, micro_tokens: as in [train], of entropy passes.
    """

    model: Any
    tokenizer: Any
    engine: RolloutEngine
    rewarder: Rewarder
    batch: int
    micro_batch: int
    autocast: str
    micro_tokens: int = 0
    tiled: bool | Literal["auto"] = "auto"

    @cached_property
    def score(self) -> Score:
        """The scoring pass at temperature 1."""
        return make_score(self.model, 1.0, self.autocast, self.tiled)

    @property
    def layout(self) -> Layout:
        return Layout(self.micro_batch, self.micro_tokens)


# Responses that an engine with a scheduler of its own is asked for at a time: each call hands it
# the weights.
_SCHEDULED = 4096
_LONGEST = 2000  # characters of a ground truth in the log


def examinee(
    config: Config, model: Any, tokenizer: Any, engine: RolloutEngine, rewarder: Rewarder
) -> Examinee:
    """The policy of a run, asked as many responses at a time as its engine is known to hold."""
    rollout, train = config.rollout, config.train
    return Examinee(
        model,
        tokenizer,
        engine,
        rewarder,
        rollout.prompts * rollout.group_size if rollout.engine == "hf" else _SCHEDULED,
        train.micro_batch,
        config.model.autocast,
        train.micro_tokens,
        train.tiled_head,
    )


def portions(problems: Sequence[Problem], samples: int, batch: int) -> Iterator[tuple[int, int]]:
    """(first, last) of the problems that are asked together: `batch` responses, or one problem."""
    size = max(1, batch // samples)
    for first in range(0, len(problems), size):
        yield first, min(first + size, len(problems)) - 1


def ask(
    who: Examinee, problems: Sequence[Problem], first: int, last: int, how: Sampling, step: int
) -> list[dict[str, Any]]:
    """The rows of the responses to problems first..last, as in `answer_schema`.

    A pure function of weights, problems, `how` and `step`, which are optimizer steps taken.
    entropy: the sum over a response's tokens of the entropy of softmax(logits), in nats, whatever
    temperature drew them.
    """
    part = list(problems[first : last + 1])
    ids = [encode_prompt(who.tokenizer, p.prompt) for p in part]
    rows: list[dict[str, Any]] = []
    # More samples than fit at a time are drawn in rounds.
    for number, done in enumerate(range(0, how.samples, who.batch)):
        n = min(who.batch, how.samples - done)
        name = f"eval {step}" + (f" round {number}" if number else "")
        seed = sampling_seed(how.seed, name, first)
        responses = who.engine.generate(
            who.model,
            ids,
            n=n,
            max_tokens=how.max_tokens,
            temperature=how.temperature,
            seed=seed,
            top_p=how.top_p,
        )
        scored = score_responses(
            responses, part, who.rewarder, who.tokenizer, max_tokens=how.max_tokens, seed=seed
        )
        entropy, length = summed_entropy(who, responses, how), responses.mask.sum(1).tolist()
        truncated = responses.truncated.tolist()
        for i, text in enumerate(scored.texts):
            problem = part[i // n]
            rows.append(
                {
                    "problem": first + i // n,
                    "sample": done + i % n,
                    "prompt_id": problem.prompt_id,
                    "reward": float(scored.reward[i]),
                    "accuracy": float(scored.accuracy[i]),
                    "note": scored.note[i],
                    "length": length[i],
                    "truncated": truncated[i],
                    "entropy": entropy[i],
                    "data_source": problem.data_source,
                    "prompt": prompt_text(problem.prompt),
                    "answer": answer_text(problem.answer),
                    "response": text,
                }
            )
    return sorted(rows, key=lambda row: (row["problem"], row["sample"]))


def answer_text(answer: Any) -> str:
    """A ground truth as text, for the log; tests of programs may take megabytes, so it is cut."""
    text = answer if isinstance(answer, str) else json.dumps(answer, default=str)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


@torch.no_grad()
def summed_entropy(who: Examinee, responses: Responses, how: Sampling) -> list[float]:
    """Of each response, the sum of the entropies of softmax(logits), nats, at temperature 1.

    Raises RunError where they were drawn from softmax(logits) of another policy.
    """
    layout = who.layout
    found = torch.zeros(len(responses.mask), dtype=torch.float64)
    logp = torch.zeros_like(responses.mask, dtype=torch.float32)
    with untouched_rng(who.model), without_dropout(who.model):
        for rows in layout.micros(responses, 0, len(responses.mask)):
            part = layout.cut(responses, rows)
            stats = who.score(model_inputs(part))  # (B, T)
            found[rows] = torch.where(part.mask, stats.entropy, 0.0).double().sum(1).cpu()
            logp[rows, : part.mask.shape[1]] = stats.logp.float()
    if how.temperature == how.top_p == 1:  # else the trainer's logp would take a pass of its own
        check_agreement(responses, logp, who.engine)
    return found.tolist()


def summary(
    benchmark: str, step: int, rows: Sequence[dict[str, Any]], how: Sampling, ks: Sequence[int]
) -> list[dict[str, Any]]:
    """The rows of evals.parquet for the responses of a benchmark, one for each k."""
    right: dict[int, int] = {}
    for row in rows:
        right[row["problem"]] = right.get(row["problem"], 0) + int(row["accuracy"] >= 1)
    shared = {
        "benchmark": benchmark,
        "step": step,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "max_tokens": how.max_tokens,
        "samples": how.samples,
        "entropy": sum(r["entropy"] for r in rows) / sum(r["length"] for r in rows),
    }
    counts = [right[problem] for problem in sorted(right)]
    return [shared | row for row in pass_rows(counts, how.samples, ks)]
