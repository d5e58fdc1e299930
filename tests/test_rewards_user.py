"""Reward functions of the user: both signatures, what they get, and errors that name the row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards import RewardConfig, Rewarder, make_rewarder
from entropy_lab.train.tasks import Arithmetic, Problem

PROBLEMS = [
    Problem("1+1=", "2", 7, "sums", {"level": 3}),
    Problem(({"role": "user", "content": "2+2?"},), "4", 8, "chats", {"hint": "even"}),
]
BOTH = {"lengths": [1, 1], "max_tokens": 8, "seed": 0}


def rewarder(folder: Path, source: str, name: str = "reward") -> Rewarder:
    path = folder / "mine.py"
    path.write_text(source)
    return make_rewarder(RewardConfig(name=f"{path}:{name}"), Arithmetic())


def graded(folder: Path, source: str, texts: list[str] | None = None) -> Any:
    return rewarder(folder, source).grade(texts or ["2", "5"], PROBLEMS, **BOTH)


def test_the_signature_of_verl(tmp_path: Path) -> None:
    found = graded(
        tmp_path,
        "def reward(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    bonus = 0.5 if data_source == 'sums' and extra_info['level'] == 3 else 0.0\n"
        "    return bonus + (solution_str == ground_truth)\n",
    )
    assert found.reward == found.accuracy == [1.5, 0.0]
    assert found.note == ["", ""]


def test_a_dict_of_verl_has_a_score_and_may_have_an_accuracy(tmp_path: Path) -> None:
    found = graded(
        tmp_path,
        "def reward(solution_str, ground_truth, **kwargs):\n"
        "    right = solution_str == ground_truth\n"
        "    return {'score': 1.0 if right else -1.0, 'acc': right, 'pred': solution_str}\n",
    )
    assert found.reward == [1.0, -1.0] and found.accuracy == [1.0, 0.0]


def test_the_signature_of_trl_gets_columns(tmp_path: Path) -> None:
    """A chat's completion is a list of one message, as TRL hands it over."""
    found = graded(
        tmp_path,
        "def reward(completions, ground_truth, prompts, data_source, level, hint, **columns):\n"
        "    assert completions == ['2', [{'role': 'assistant', 'content': '5'}]]\n"
        "    assert prompts == ['1+1=', [{'role': 'user', 'content': '2+2?'}]]\n"
        "    assert ground_truth == columns['answer'] == columns['solution'] == ['2', '4']\n"
        "    assert (data_source, level, hint) == (['sums', 'chats'], [3, None], [None, 'even'])\n"
        "    assert columns['extra_info'] == [{'level': 3}, {'hint': 'even'}]\n"
        "    return [0.25, None]\n",
    )
    assert found.reward == found.accuracy == [0.25, 0.0]
    assert found.note == ["", "not scored"]


def test_a_function_is_given_only_what_it_takes(tmp_path: Path) -> None:
    assert graded(tmp_path, "def reward(completions, answer):\n    return [1, True]\n").reward == [
        1,
        1,
    ]
    assert graded(tmp_path, "def reward(solution_str):\n    return int(solution_str)").reward == [
        2,
        5,
    ]


def test_async_functions_are_waited_for_even_where_a_loop_is_running(tmp_path: Path) -> None:
    made = rewarder(
        tmp_path,
        "import asyncio\n"
        "async def reward(completions, **columns):\n"
        "    await asyncio.sleep(0)\n"
        "    return [1.0 for _ in completions]\n",
    )

    async def notebook() -> Any:
        return made.grade(["2", "5"], PROBLEMS, **BOTH)

    assert asyncio.run(notebook()).reward == [1.0, 1.0]
    single = "async def reward(solution_str, **_):\n    return float(solution_str)\n"
    assert graded(tmp_path, single).reward == [2.0, 5.0]


BROKEN = {
    "raises": (
        "def reward(solution_str, **_):\n    return 1 / (solution_str != '5')",
        r"mine.py:reward failed at row 1: ZeroDivisionError: division by zero",
    ),
    "batch raises": (
        "def reward(completions, **_):\n    raise KeyError('gold')",
        r"mine.py:reward failed at 2 completions: KeyError: 'gold'",
    ),
    "NaN": (
        "def reward(solution_str, **_):\n    return float('nan') if solution_str == '5' else 1.0",
        r"mine.py:reward gave nan at row 1: return a finite number",
    ),
    "infinity": (
        "def reward(completions, **_):\n    return [0.0, float('inf')]",
        r"mine.py:reward gave inf at row 1: return a finite number",
    ),
    "text": (
        "def reward(solution_str, **_):\n    return '1.0'",
        r"mine.py:reward gave '1.0' \(str\) at row 0: return a finite number",
    ),
    "nothing": (
        "def reward(solution_str, **_):\n    pass",
        r"mine.py:reward gave None \(NoneType\) at row 0: return a finite number",
    ),
    "no score": (
        "def reward(solution_str, **_):\n    return {'acc': 1}",
        r"""mine.py:reward gave a dict without "score" at row 0: \{'acc': 1\}; add it""",
    ),
    "too few": (
        "def reward(completions, **_):\n    return [1.0]",
        r"mine.py:reward gave 1 values for 2 completions: return one number or None for each",
    ),
    "no list": (
        "def reward(completions, **_):\n    return 1.0",
        r"mine.py:reward gave 1.0 for 2 completions: return a list with one number or None",
    ),
    "a column that is not there": (
        "def reward(completions, levl, **_):\n    return [1.0, 1.0]",
        r"mine.py:reward asks for 'levl', which no problem has: did you mean level",
    ),
    "another signature": (
        "def reward(response, truth):\n    return 1.0",
        r"mine.py:reward takes \(response, truth\), .* as in verl, or reward\(completions, \*\*",
    ),
    "no function": ("reward = 3", r"mine.py:reward is 'int', no function: write compute_score\("),
    "a class": ("class reward: pass", r"mine.py:reward is 'type', no function: write"),
    "no such name": ("def rewarded(): pass", r"has no 'reward': did you mean rewarded\?"),
    "a broken file": ("def reward(:", r"cannot load .*mine.py: SyntaxError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_function_is_named(case: str, tmp_path: Path) -> None:
    source, message = BROKEN[case]
    with pytest.raises(ConfigError, match=message):
        graded(tmp_path, source)


def test_numbers_of_other_kinds_count(tmp_path: Path) -> None:
    source = (
        "import numpy, torch\n"
        "def reward(completions, **_):\n"
        "    return numpy.array([0.5, 1.0]) if len(completions[0]) == 1 else torch.ones(2)\n"
    )
    assert graded(tmp_path, source).reward == [0.5, 1.0]
    assert graded(tmp_path, source, ["22", "5"]).reward == [1.0, 1.0]


def test_a_file_without_a_callable_and_a_missing_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(solution_str): return 1.0")
    with pytest.raises(ConfigError, match=r"mine.py names no callable: write .*mine.py:score"):
        make_rewarder(RewardConfig(name=str(tmp_path / "mine.py")), Arithmetic())
    with pytest.raises(
        ConfigError, match="no such file: nowhere.py; give FILE.py:CALLABLE, or the"
    ):
        make_rewarder(RewardConfig(name="nowhere.py:score"), Arithmetic())
    with pytest.raises(
        ConfigError, match=r"unknown reward.name 'maths': did you mean math\? .*verl"
    ):
        make_rewarder(RewardConfig(name="maths"), Arithmetic())


def test_no_responses_are_no_call(tmp_path: Path) -> None:
    made = rewarder(tmp_path, "def reward(completions):\n    raise ValueError")
    assert made.grade([], [], lengths=[], max_tokens=8, seed=0).reward == []
