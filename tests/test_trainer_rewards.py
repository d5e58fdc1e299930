"""The trainer asks [reward]: what it says goes into the loss, the samples and the evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entropy_lab import load
from entropy_lab.errors import ConfigError
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.rewards import RewardConfig, make_rewarder
from entropy_lab.train.rewards.isolation import isolation
from entropy_lab.train.tasks import Arithmetic, Data, Problem
from tiny import TINY

EVALUATED = ["eval.every=1", "eval.problems=3", "eval.samples=2", "task.held_out_share=0.2"]


def test_random_rewards_train_and_the_tasks_own_are_the_accuracy(tmp_path: Path) -> None:
    settings = [*TINY, *EVALUATED, "reward.name=random", "reward.value=2.0", "train.rollouts=2"]
    run = load(run_training(None, settings, tmp_path / "run"))
    samples, task = run.samples(), Arithmetic(digits=1)
    assert set(samples["reward"]) == {0.0, 2.0}
    answer = samples["prompt"].str.rstrip("=").map(lambda text: str(sum(map(int, text.split("+")))))
    own = [
        task.reward(text, Problem("", a, 0))
        for text, a in zip(samples["response"], answer, strict=True)
    ]
    np.testing.assert_array_equal(samples["accuracy"], own)
    # Advantages are of the rewards that were drawn: within a group their signs go together.
    centred = samples["reward"] - samples.groupby("group")["reward"].transform("mean")
    np.testing.assert_array_equal(np.sign(samples["advantage"].round(6)), np.sign(centred))


def test_evaluations_count_what_is_right_whatever_it_is_paid(tmp_path: Path) -> None:
    settings = [*TINY, *EVALUATED, "reward.name=constant", "reward.value=2.0", "train.rollouts=1"]
    paid = load(run_training(None, settings, tmp_path / "paid"))
    own = load(run_training(None, [*settings[:-3], "train.rollouts=1"], tmp_path / "own"))
    before = [run.evals().query("step == 0")["avg_at_k"].tolist() for run in (paid, own)]
    assert before[0] == before[1] and before[0][0] < 1


def test_a_users_function_is_asked_with_the_text_and_its_note_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def even(completions, **columns):\n"
        "    return [None if not c else float(len(c) % 2 == 0) for c in completions]\n"
    )
    settings = [*TINY, f"reward.name={mine}:even", "train.rollouts=1"]
    samples = load(run_training(None, settings, tmp_path / "run")).samples()
    scored = samples["response"] != ""
    expected = (samples["response"].str.len() % 2 == 0) & scored
    np.testing.assert_array_equal(samples["reward"], expected.astype(float))
    assert set(samples.loc[~scored, "note"]) <= {"not scored"}
    assert set(samples.loc[scored, "note"]) == {""}


@pytest.mark.skipif(not isolation().isolated, reason="nothing isolates code on this machine")
def test_programs_are_judged_by_their_tests() -> None:
    tests = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
    problem = Problem("add", tests, 0)
    texts = [
        "```python\nprint(sum(map(int, input().split())))\n```",
        "```python\nprint(3)\n```",
        "```python\nwhile True: pass\n```",
    ]
    for partial, expected in ((False, [1.0, 0.0, 0.0]), (True, [1.0, 0.5, 0.0])):
        config = RewardConfig(name="code", timeout=1.0, partial=partial)
        with make_rewarder(config, Arithmetic()) as rewarder:
            graded = rewarder.grade(texts, [problem] * 3, lengths=[9] * 3, max_tokens=99, seed=0)
            assert graded == rewarder.grade(
                texts, [problem] * 3, lengths=[9] * 3, max_tokens=99, seed=0
            )
        assert graded.reward == expected
        assert graded.accuracy == [1.0, 0.0, 0.0]
        assert graded.note[0] == "tests pp"
        assert graded.note[1] == "tests pw: test 2 of 2: wrong: printed '3\\n'"
        assert graded.note[2].startswith("tests tt: test 1" if partial else "tests t-: test 1")


def test_controls_grade_data_as_training_on_it_does() -> None:
    problem, text = Problem("?", r"\frac{1}{2}", 0), r"\boxed{0.5}"
    for name in ("task", "random", "constant"):
        with make_rewarder(RewardConfig(name=name), Data(train=["x.parquet"])) as rewarder:
            graded = rewarder.grade([text], [problem], lengths=[1], max_tokens=9, seed=0)
        assert graded.accuracy == [1.0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["reward.overlong_buffer=500"], r"overlong_buffer = 500 is more than the rollout.max_tok"),
        (["model.lora_rank=4", "rollout.engine=vllm"], r"the engine 'vllm' takes no adapters"),
    ],
)
def test_settings_that_cannot_go_together_are_named_at_once(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config(None, words)
