"""Shaping and controls: the numbers of the formulas, and what a seed decides."""

from __future__ import annotations

import pytest

from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards import RewardConfig, make_rewarder
from entropy_lab.train.rewards.shaping import is_well_formed, overlong_penalty
from entropy_lab.train.tasks import Arithmetic, Problem

SUM = Problem("47+85=", "132", 4785)


def grade(
    config: RewardConfig, texts: list[str], *, lengths: list[int] | None = None, seed: int = 0
):
    with make_rewarder(config, Arithmetic()) as rewarder:
        return rewarder.grade(
            texts,
            [SUM] * len(texts),
            lengths=lengths or [1] * len(texts),
            max_tokens=100,
            seed=seed,
        )


def test_the_overlong_penalty_is_that_of_dapo() -> None:
    """L_max 20480 and L_cache 4096 are the paper's: half of the buffer costs one half."""
    lengths = [1, 16384, 16385, 18432, 20480, 20481, 99999]
    expected = [0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0, -1.0]
    assert [overlong_penalty(n, 20480, 4096) for n in lengths] == expected
    assert overlong_penalty(20480, 20480, 0) == 0.0
    with pytest.raises(
        ConfigError, match=r"overlong_buffer = 200 is more than the 100 tokens of a"
    ):
        overlong_penalty(1, 100, 200)


def test_the_tasks_own_reward_is_the_default_and_is_shaped() -> None:
    texts = ["12;13;132", "12;13;133"]
    plain = grade(RewardConfig(), texts)
    assert plain.reward == plain.accuracy == [1.0, 0.0] and plain.note == ["", ""]
    shaped = grade(RewardConfig(overlong_buffer=50, overlong_penalty=0.4), texts, lengths=[75, 100])
    assert shaped.reward == pytest.approx([1.0 - 0.2, -0.4])
    assert shaped.accuracy == [1.0, 0.0]


def test_a_stated_answer_gets_the_format_reward_right_or_wrong() -> None:
    texts = [r"\boxed{132}", r"\boxed{1}", "132", r"<think> x \boxed{132}"]
    found = grade(RewardConfig(name="math", format_weight=0.1, timeout=30.0), texts)
    assert found.reward == pytest.approx([1.1, 0.1, 0.0, 0.0])
    assert found.accuracy == [1.0, 0.0, 0.0, 0.0]
    assert found.note == ["", "", "no answer", "no answer"]


def test_the_format_wants_an_answer_and_at_most_one_thinking_block_that_ends() -> None:
    assert is_well_formed(r"<think>a</think>\boxed{1}") and is_well_formed(r"a</think>\boxed{1}")
    assert is_well_formed("Answer: 3")
    for text in ("", "3", r"\boxed{3", "<think>a</think><think>b</think> Answer: 3"):
        assert not is_well_formed(text), text


def test_a_format_reward_where_nothing_reads_answers_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r'format_weight = 0.1 has no effect on reward.name = "ra'
    ):
        grade(RewardConfig(name="random", format_weight=0.1), ["1"])


def test_random_rewards_depend_on_the_seed_and_the_row_alone() -> None:
    config = RewardConfig(name="random", value=2.0, probability=0.3)
    first = grade(config, ["12;13;132"] * 4000, seed=5)
    again = grade(config, ["no"] * 4000, seed=5)
    other = grade(config, ["no"] * 4000, seed=6)
    assert first.reward == again.reward != other.reward
    assert set(first.reward) == {0.0, 2.0}
    # Binomial: 4 standard errors of a share of 0.3 in 4000 draws are 0.029.
    assert sum(first.reward) / 2 / 4000 == pytest.approx(0.3, abs=0.029)
    agree = sum(a == b for a, b in zip(first.reward, other.reward, strict=True)) / 4000
    assert agree == pytest.approx(0.3**2 + 0.7**2, abs=0.032)
    assert first.accuracy == [1.0] * 4000 and again.accuracy == [0.0] * 4000


def test_a_constant_reward_tells_the_accuracy() -> None:
    found = grade(RewardConfig(name="constant", value=0.7), ["12;13;132", "no"])
    assert found.reward == [0.7, 0.7] and found.accuracy == [1.0, 0.0]


def test_unequal_numbers_are_refused() -> None:
    with make_rewarder(RewardConfig(), Arithmetic()) as rewarder:
        with pytest.raises(ValueError, match="2 texts, 1 problems and 2 lengths: give one problem"):
            rewarder.grade(["a", "b"], [SUM], lengths=[1, 1], max_tokens=8, seed=0)
