"""Evaluation with an engine whose chance of success is known, and with the real one."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from entropy_lab.errors import ConfigError
from entropy_lab.probe.world import ALONE
from entropy_lab.record.schema import eval_schema
from entropy_lab.train.config import Config, load_config
from entropy_lab.train.evaluate import evaluate
from entropy_lab.train.model import new_model
from entropy_lab.train.pass_at_k import pass_at_k
from entropy_lab.train.randomness import seeded
from entropy_lab.train.rewards import RewardConfig, make_rewarder
from entropy_lab.train.rollout import HFEngine, Responses
from entropy_lab.train.tasks import make_task
from entropy_lab.train.tokenizer import character_tokenizer
from guesser import guessing

SETTINGS = [
    "task.held_out_share=0.1",
    "eval.every=1",
    "model.layers=1",
    "model.hidden=16",
    "model.intermediate=32",
    "model.heads=2",
]


# --- the whole evaluation, with a model and an engine that are known -----------------------------


def variance(p: float, n: int, k: int) -> float:
    """Of pass@k of one problem, over c ~ Binomial(n, p)."""
    law = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    values = [pass_at_k(n, c, k) for c in range(n + 1)]
    mean = sum(w * v for w, v in zip(law, values, strict=True))
    return sum(w * (v - mean) ** 2 for w, v in zip(law, values, strict=True))


def test_a_known_chance_of_success_is_found() -> None:
    parts = guessing("eval.problems=200", "eval.samples=32", "eval.max_k=16")
    rows = evaluate(parts, step=6)
    chances = np.array([parts.engine.chance(p) for p in parts.engine.counts])
    assert len(chances) == 200 and 60 < (chances > 0.5).sum() < 140
    assert [r["k"] for r in rows] == [1, 2, 4, 8, 16]
    drawn = np.array(list(parts.engine.counts.values()))
    for row in rows:
        assert row.keys() == set(eval_schema().names)
        assert row["avg_at_k"] == pytest.approx(drawn.mean(), rel=1e-12)
        # Against the chances that were planted, within four standard errors of the draws.
        truth = (1 - (1 - chances) ** row["k"]).mean()
        noise = math.sqrt(sum(variance(p, 32, row["k"]) for p in chances)) / 200
        assert noise < 0.02 and row["pass_at_k"] == pytest.approx(truth, abs=4 * noise)
        assert (row["n"], row["samples"], row["step"]) == (200, 32, 6)
        assert row["benchmark"] == "arithmetic_heldout"
    assert rows[0]["pass_at_k"] == pytest.approx(rows[0]["avg_at_k"], rel=1e-12)
    assert rows[0]["pass_at_k_se"] == pytest.approx(
        drawn.mean(axis=1).std(ddof=1) / 200**0.5, rel=1e-12
    )


def test_any_list_of_k_and_rows_in_its_order() -> None:
    parts = guessing("eval.problems=20", "eval.samples=24", "eval.k=[24, 3, 10, 3]")
    rows = evaluate(parts, step=0)
    assert [r["k"] for r in rows] == [3, 10, 24]
    right = [sum(drawn) for drawn in parts.engine.counts.values()]
    for row in rows:
        by_hand = [1 - math.comb(24 - c, row["k"]) / math.comb(24, row["k"]) for c in right]
        assert row["pass_at_k"] == pytest.approx(np.mean(by_hand), rel=1e-12)


def test_the_entropy_is_that_of_every_token_of_the_responses() -> None:
    parts = guessing("eval.problems=7", "eval.samples=5", "train.micro_batch=3")
    assert parts.model.training  # dropout is set aside, and then as it was
    row = evaluate(parts, 0)[0]
    assert row["entropy"] == pytest.approx(math.log(len(parts.tokenizer)), rel=1e-6)
    assert parts.model.dropout.training


def test_the_engine_is_asked_as_the_settings_say() -> None:
    settings = ["rollout.prompts=5", "rollout.group_size=4", "eval.problems=7", "eval.samples=8"]
    parts = guessing(*settings, "eval.temperature=0.6", "train.minibatches=1", "eval.max_tokens=9")
    row = evaluate(parts, 0)[0]
    calls = parts.engine.calls
    assert [c["prompts"] for c in calls] == [2, 2, 2, 1]  # 20 // 8 problems at a time
    assert {(c["n"], c["temperature"], c["max_tokens"]) for c in calls} == {(8, 0.6, 9)}
    assert len({c["seed"] for c in calls}) == 4
    assert (row["temperature"], row["top_p"], row["max_tokens"]) == (0.6, 1.0, 9)
    wide = guessing(*settings, "train.minibatches=1", "eval.samples=32")
    assert evaluate(wide, 0)[0]["max_tokens"] == 12  # that of [rollout]
    # More samples than the 20 responses that fit at a time are drawn in rounds.
    assert [(c["prompts"], c["n"]) for c in wide.engine.calls] == [(1, 20), (1, 12)] * 7
    assert len({c["seed"] for c in wide.engine.calls}) == 14


def test_problems_are_held_out_and_the_same_in_every_run() -> None:
    asked = []
    for settings, step in ((["run.seed=0"], 0), (["run.seed=5"], 8)):
        parts = guessing(*settings, "eval.problems=40", "eval.samples=2")
        evaluate(parts, step)
        asked.append([*parts.engine.counts])
    assert asked[0] == asked[1] and len(asked[0]) == 40
    fewer = guessing("eval.problems=10", "eval.samples=2")
    evaluate(fewer, 0)
    assert [*fewer.engine.counts] == asked[0][:10]
    train = make_task("arithmetic", held_out_share=0.1).problems(6000, random.Random(0))
    assert not {p.prompt for p in train} & set(asked[0])


# --- and with the real engine ------------------------------------------------------------------


def sampling(config: Config) -> SimpleNamespace:
    task = make_task(config.task.name, **config.task.params)
    tokenizer = character_tokenizer(task.alphabet)
    model = new_model(config, tokenizer).eval()
    return SimpleNamespace(
        config=config,
        task=task,
        source=task,
        tokenizer=tokenizer,
        model=model,
        engine=HFEngine(),
        rewarder=make_rewarder(RewardConfig(), task),
        world=ALONE,
    )


def test_a_pure_function_of_weights_and_seed() -> None:
    settings = [*SETTINGS, "eval.problems=6", "eval.samples=4"]
    parts = sampling(load_config(None, settings))
    torch.manual_seed(0)
    first = evaluate(parts, 2)
    torch.manual_seed(9)
    state, flags = torch.get_rng_state(), [m.training for m in parts.model.modules()]
    weights = [p.clone() for p in parts.model.parameters()]
    assert evaluate(parts, 2) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in parts.model.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(weights, parts.model.parameters(), strict=True))
    assert all(p.grad is None for p in parts.model.parameters())
    other = sampling(load_config(None, [*settings, "run.seed=1"]))
    assert evaluate(parts, 4)[0]["entropy"] != first[0]["entropy"]
    assert evaluate(other, 2)[0]["entropy"] != first[0]["entropy"]


def test_the_entropy_is_at_temperature_one_whatever_drew_the_responses() -> None:
    """Response by response, without batch or padding, in float64 softmax."""
    parts = sampling(
        load_config(
            None,
            [*SETTINGS, "task.name=countdown", "task.held_out_share=0.1", "eval.temperature=0.5"]
            + ["eval.problems=5", "eval.samples=6", "train.micro_batch=4"],
        )
    )
    with torch.no_grad(), seeded(3):
        for p in parts.model.parameters():
            p.add_(torch.randn(p.shape) * 0.3)  # far from flat
    kept: list[Responses] = []

    class Kept(HFEngine):
        def generate(self, *args: Any, **kwargs: Any) -> Responses:
            kept.append(super().generate(*args, **kwargs))
            return kept[-1]

    parts.engine = Kept()
    row = evaluate(parts, 0)[0]
    found = []
    for responses in kept:
        for i in range(len(responses.mask)):
            prompt = responses.prompt_id[i][responses.prompt_mask[i]]
            answer = responses.token_id[i][responses.mask[i]]
            with torch.no_grad():
                logits = parts.model(input_ids=torch.cat([prompt, answer])[None]).logits[0]
            logp = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
            found += (-(logp.exp() * logp).sum(-1)).tolist()
    assert np.std(found) > 0.1
    assert row["entropy"] == pytest.approx(np.mean(found), rel=1e-5)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            ["eval.max_k=128"],
            "eval.max_k = 128 is more than eval.samples = 64: pass@k needs at least k samples of "
            "each problem, so raise eval.samples or lower eval.max_k",
        ),
        (
            ["eval.samples=4", "eval.max_k=8"],
            "eval.max_k = 8 is more than eval.samples = 4",
        ),
        (
            ["eval.k=[1, 100]"],
            "eval.k = 100 is more than eval.samples = 64: pass@k needs at least k samples of each "
            "problem, so raise eval.samples or lower eval.k",
        ),
        (["eval.k=[0]"], "eval.k.0 must be greater than or equal to 1, got 0"),
        (["eval.k=[2]", "eval.max_k=4"], "eval.k = [2] and eval.max_k = 4 both say which pass@k"),
        (
            ["eval.temperature=0"],
            "eval.temperature = 0 takes the likeliest response, of which there is one: set "
            "eval.samples to 1, not 64",
        ),
        (
            ["eval.every=5"],
            "eval.every = 5 needs eval.problems = 64 held-out problems, but task arithmetic holds "
            "no problems out: set task.held_out_share, for example to 0.1",
        ),
        (
            ["eval.every=5", "task.held_out_share=0.1", "task.digits=1"],
            "eval.every = 5 needs eval.problems = 64 held-out problems, but task arithmetic gave 2 "
            "held-out problems at held_out_share = 0.1, fewer than the 64 asked for",
        ),
        (["eval.every=-1"], "eval.every must be greater than or equal to 0, got -1"),
        (["eval.samples=0"], "eval.samples must be greater than or equal to 1, got 0"),
        (["eval.temperature=-1"], "eval.temperature must be greater than or equal to 0, got -1"),
        (["eval.evry=5"], "unknown key eval.evry; did you mean every?"),
    ],
)
def test_settings_that_cannot_be_evaluated_are_one_line(settings: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, settings)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_without_evaluation_nothing_needs_to_be_held_out() -> None:
    config = load_config()
    assert config.eval.every == 0 and config.task.params == {"digits": 2}
    assert load_config(None, [*SETTINGS, "eval.every=3"]).eval.every == 3
