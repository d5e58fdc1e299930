"""Tasks: rewards against arithmetic done another way, traces, and hostile responses."""

from __future__ import annotations

import ast
import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_lab.train.tasks import (
    TASKS,
    Arithmetic,
    Countdown,
    Problem,
    WorkedTask,
    make_task,
)
from entropy_lab.train.tasks.countdown import evaluate

WORKED = sorted(name for name, task in TASKS.items() if issubclass(task, WorkedTask))
SUM = Problem("47+85=", "132", 4785)


@pytest.fixture(params=WORKED)
def task(request: pytest.FixtureRequest):
    return make_task(request.param)


def test_problems_depend_on_the_seed_alone(task) -> None:
    first = task.problems(50, random.Random(3))
    assert first == task.problems(50, random.Random(3))
    assert first != task.problems(50, random.Random(4))
    assert len({p.prompt_id for p in first}) == len({p.prompt for p in first}) == 50


def test_clean_traces_are_right_and_fit(task) -> None:
    rng = random.Random(0)
    for problem in task.problems(300, rng):
        text = task.trace(problem, rng)
        assert task.reward(text, problem) == 1.0
        assert len(text) + 1 <= task.max_tokens
        assert set(problem.prompt + text) <= set(task.alphabet)
        assert 0 <= problem.prompt_id < 2**63


def test_corrupted_traces_stay_in_the_alphabet_and_fail_more(task) -> None:
    rng = random.Random(1)
    right = []
    for problem in task.problems(400, rng):
        text = task.trace(problem, rng, 0.35)
        assert set(text) <= set(task.alphabet) and len(text) + 1 <= task.max_tokens
        right.append(task.reward(text, problem))
    assert 0.02 < sum(right) / len(right) < 0.6


def test_traces_depend_on_the_generator_alone(task) -> None:
    problem = task.problems(1, random.Random(0))[0]
    draws = [[task.trace(problem, random.Random(s), 0.5) for _ in range(2)] for s in range(30)]
    assert all(a == b for a, b in draws)
    assert len({a for a, _ in draws}) > 3


@given(text=st.text())
@pytest.mark.parametrize("name", WORKED)
def test_any_text_has_a_reward(name: str, text: str) -> None:
    task = make_task(name)
    problem = task.problems(1, random.Random(0))[0]
    assert task.reward(text, problem) in (0.0, 1.0)


def test_arithmetic_writes_columns_from_the_units_up() -> None:
    assert Arithmetic().trace(SUM, random.Random(0)) == "12;13;132"
    assert Arithmetic().trace(Problem("10+10=", "20", 0), random.Random(0)) == "0;2;20"
    three = Problem("999+999=", "1998", 0)
    assert Arithmetic(digits=3).trace(three, random.Random(0)) == "18;19;19;1998"


def test_arithmetic_rewards_the_last_field_only() -> None:
    reward = Arithmetic().reward
    assert reward("12;13;132", SUM) == 1.0 and reward("1;1;132", SUM) == 1.0
    for text in ("", ";", "12;13;133", "12;13;132;", "12;13;0132", "12;132;13", "132 ", "١٣٢"):
        assert reward(text, SUM) == 0.0, text


def test_arithmetic_answers_are_sums_and_all_problems_are_reached() -> None:
    everything = Arithmetic(digits=1).problems(81, random.Random(0))
    assert {p.prompt for p in everything} == {
        f"{a}+{b}=" for a, b in itertools.product(range(1, 10), repeat=2)
    }
    assert all(int(p.answer) == sum(map(int, p.prompt[:-1].split("+"))) for p in everything)
    assert len(Arithmetic(digits=1).problems(200, random.Random(0))) == 200


def test_arithmetic_corrupts_each_step_at_the_asked_rate() -> None:
    rng, wrong, total = random.Random(0), 0, 4000
    for _ in range(total):
        units, tens, answer = Arithmetic().trace(SUM, rng, 0.35).split(";")
        # Later steps follow what was written, so each is judged from the one before.
        assert units[0] == "1" and int(tens) // 10 == 1
        assert int(answer) // 10 == 10 * (int(tens) // 10) + int(tens) % 10
        wrong += (units != "12") + (tens != "13") + (answer[-1] != units[-1])
    assert wrong / (3 * total) == pytest.approx(0.35, abs=0.02)


def brute_force(numbers: list[Fraction]) -> set[Fraction]:
    """Every value reachable from some of the numbers, by joining pairs in all ways."""
    found = set(numbers)
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [x for k, x in enumerate(numbers) if k not in (i, j)]
        a, b = numbers[i], numbers[j]
        joined = [a + b, a - b, a * b, *([a / b] if b else [])]
        for value in joined:
            found |= brute_force([*rest, value])
    return found


def test_countdown_targets_are_reachable() -> None:
    for problem in Countdown().problems(40, random.Random(5)):
        given, target = problem.prompt[:-1].split(":")
        numbers = [Fraction(x) for x in given.split(",")]
        assert int(target) in brute_force(numbers) and int(target) not in numbers
        assert 1 <= int(target) <= 99


def test_countdown_uses_each_number_at_most_once() -> None:
    problem = Problem("3,7,25:54=", "(25-7)*3", 0)
    reward = Countdown().reward
    assert reward("(25-7)*3", problem) == reward("3*(25-7)", problem) == 1.0
    assert reward("((3))*((25-7))", problem) == 1.0
    assert reward("25+25+7-3", problem) == 0.0  # 54, but 25 stands twice
    assert reward("54", problem) == reward("9*6", problem) == 0.0
    assert reward("27*2", Problem("27,2,2:54=", "", 0)) == 1.0  # a number may be left out
    assert reward("2*2", Problem("2,2:4=", "", 0)) == 1.0  # given twice, used twice


def _reference(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    a, b = _reference(node.left), _reference(node.right)
    name = type(node.op).__name__
    return (
        a + b if name == "Add" else a - b if name == "Sub" else a * b if name == "Mult" else a / b
    )


_NUMBERS = st.integers(0, 30).map(str)
_EXPRESSIONS = st.recursive(
    _NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map(lambda x: f"({x})"),
    ),
    max_leaves=8,
)


@given(text=_EXPRESSIONS)
def test_the_evaluator_agrees_with_python_grammar(text: str) -> None:
    tree = ast.parse(text, mode="eval").body
    numbers = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    try:
        expected = _reference(tree)
    except ZeroDivisionError:
        expected = None
    if len(text) > 64:
        expected = None
    assert evaluate(text, numbers) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "", "()", "1+", "+1", "-1", "1 + 2", "1**2", "1//2", "1_2", "01", "1.0", "1e1", "(1", "1)",
        "1(2)", "(1)(2)", "1+*2", "__import__('os')", "1\n+2", "²", "١", "0x1", "1/(1-1)", "1/0",
    ],
)  # fmt: skip
def test_everything_else_has_no_value(text: str) -> None:
    assert evaluate(text, [0, 0, 1, 1, 1, 2, 2, 12]) is None


def test_hostile_expressions_end_at_once() -> None:
    for text in ("(" * 10**6, "9" * 10**6, "9*" * 10**6, "(" * 64, "(" * 31 + "1" + ")" * 31 + "*"):
        assert evaluate(text, [1, 9]) is None
    assert evaluate("(" * 31 + "1" + ")" * 31, [1]) == 1
