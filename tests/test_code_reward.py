"""Rewards of code: honest solutions are paid, wrong ones are not, in every layout of tests."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from code_problems import PROBLEMS, calls, stdin, wrong_test
from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.code import CodeGrader, code_reward, extract_code, grade_code
from entropy_lab.train.rewards.code_compare import same_output, same_value
from entropy_lab.train.rewards.code_tests import AssertTests, CallTests, StdinTests, read_tests
from entropy_lab.train.rewards.isolation import isolation
from entropy_lab.train.rewards.jail.wire import encode

needs_sandbox = pytest.mark.skipif(not isolation().isolated, reason=isolation().describe())


@pytest.fixture(scope="module")
def grader() -> Iterator[CodeGrader]:
    with CodeGrader(workers=2, timeout=10.0) as made:
        yield made


def fenced(code: str) -> str:
    return f"Let me think.\n```python\n{code}\n```\nThat is it."


@needs_sandbox
@pytest.mark.parametrize("name", PROBLEMS)
def test_an_honest_solution_is_paid_and_the_same_is_wrong_for_another_test(
    grader: CodeGrader, name: str
):
    program, tests = PROBLEMS[name]
    right, wrong = grader.grade([fenced(program)] * 2, [tests, wrong_test(tests)])
    assert right.reason == "" and right.reward() == 1.0
    assert wrong.reward() == 0.0 and wrong.cases[-1].outcome == "wrong"


def test_there_are_enough_problems():
    assert len(PROBLEMS) >= 30


@needs_sandbox
def test_results_are_in_order_and_do_not_depend_on_workers_or_neighbours():
    programs = [fenced(p) for p, _ in PROBLEMS.values()] + [
        "print(hash('abc'), random.random(), list({'a', 'b', 'c', 'd'}))"
    ]
    tests = [t for _, t in PROBLEMS.values()] + [stdin(("", "x"))]
    shuffled = np.random.default_rng(0).permutation(len(programs))
    with CodeGrader(workers=1, timeout=10.0) as one, CodeGrader(workers=3, timeout=10.0) as three:
        alone = one.grade(programs, tests)
        together = three.grade([programs[i] for i in shuffled], [tests[i] for i in shuffled])
    assert [alone[i] for i in shuffled] == together
    assert alone[-1].reason.startswith("test 1 of 1: wrong: printed")


PARTLY = "def f(x):\n    while x == 2: pass\n    return x"


@needs_sandbox
def test_partial_runs_every_test_and_the_default_stops_at_the_first_failure():
    tests = calls("f", ([1], 1), ([2], 2), ([3], 3), ([4], 5))
    found = grade_code(PARTLY, tests, partial=True, timeout=0.3)
    assert [c.outcome for c in found.cases] == ["passed", "timeout", "passed", "wrong"]
    assert (found.share, found.reward(), found.reward(partial=True)) == (0.5, 0.0, 0.5)
    assert found.reason == "test 2 of 4: timeout: not done after 0.3 s"
    stopped = grade_code(PARTLY, tests, timeout=0.3)
    assert [c.outcome for c in stopped.cases] == ["passed", "timeout"] and stopped.total == 4
    assert code_reward(PARTLY, tests, partial=True, timeout=0.3) == 0.5
    assert code_reward(PARTLY, tests, timeout=0.3) == 0.0
    assert code_reward("def f(x): return x", calls("f", ([1], 1))) == 1.0


@needs_sandbox
def test_a_problem_has_a_limit_on_its_total_time():
    loop, tests = "while True: pass", stdin(*[("", "")] * 5)
    found = grade_code(loop, tests, partial=True, timeout=0.4, total_timeout=0.6)
    assert [c.outcome for c in found.cases] == ["timeout"] * 5
    assert [c.reason for c in found.cases[:2]] == ["not done after 0.4 s", "not done after 0.6 s"]
    assert found.cases[4].reason == "not run: the 0.6 s of the problem were used up"


@needs_sandbox
@pytest.mark.parametrize(
    "tests",
    [
        {"inputs": [[2, 3]], "outputs": [5], "fn_name": "add"},
        {"test_list": ["assert add(2, 3) == 5"], "entry_point": "add"},
    ],
)
def test_a_function_of_the_prelude_is_no_answer(tests: Any, grader: CodeGrader):
    """Programs find `operator.add` without an import; a problem that asks for it does not."""
    codes = ["print(0)", "def add(a, b): return a + b", "from operator import add"]
    results = grader.grade([f"```python\n{code}\n```" for code in codes], [tests] * 3)
    assert [r.reward() for r in results] == [0.0, 1.0, 1.0]


@needs_sandbox
def test_the_reason_of_a_failure_is_kept(grader: CodeGrader):
    wanted = {
        "print(1 / 0)": "error: ZeroDivisionError: division by zero",
        "print(": "error: SyntaxError: '(' was never closed",
        "raise SystemExit(3)": "error: exit code 3",
        "x = bytearray(2 << 30)": "memory: more than 1024 MiB: MemoryError",
        "print(8)": "wrong: printed '8\\n'",
    }
    found = grader.grade(list(wanted), [stdin(("", "7"))] * len(wanted))
    assert [g.reason for g in found] == [f"test 1 of 1: {why}" for why in wanted.values()]
    [missing] = grader.grade(["def g(x): return x"], [calls("f", ([1], 1))])
    assert missing.reason == "test 1 of 1: error: NameError: name 'f' is not defined"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na = 1\n```\nbetter:\n```python\na = 2\n```\n", "a = 2\n"),
        ("```py\na = 1\n```\nOutput:\n```\n3\n```", "a = 1\n"),
        ("```\na = 1\n```\n```text\n3\n```", "3\n"),
        ("print(1)", "print(1)"),
        ("  ```Python\n  x\n  ```", "  x\n"),
        ("```python\na = 1", "```python\na = 1"),
    ],
)
def test_the_program_of_a_response(response: str, program: str):
    assert extract_code(response) == program


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("  1 2  \n3", "1 2\n3\n\n", True),
        ("1  2", "1 2", True),  # as numbers
        ("a  b", "a b", False),  # as words
        ("1.0 2", "1 2.00", True),
        ("1e2", "100", True),
        ("0.33333", "0.333333", False),
        ("50000000000000001", "50000000000000000", False),
        ("1\n\n2", "1\n2", False),
        ("", "\n", True),
        ("nan", "NaN", False),
        ("1 2 3", "1 2", False),
        ("Yes", "YES", False),
    ],
)
def test_output_is_compared_as_livecodebench_does(printed: str, expected: str, same: bool):
    assert same_output(printed, expected) is same


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        ((1, (2, 3)), [1, [2, 3]], True),
        ([1, 2], [1, 2, 3], False),
        (1.0, 1, True),
        (True, 1, True),
        ("1", 1, False),
        (None, None, True),
        (2**70, 2**70, True),
        (2**70, 2**70 + 1, False),
        ({1: (2,)}, {"1": [2]}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({1: 2, "1": 2}, {"1": 2}, False),
        ({1, 2}, [1, 2], False),
        ([], {}, False),
        ({}, [], False),
        (Liar(3), 4, False),
        (Liar(3), 3, True),
        (object(), [0, "object"], False),
        (np.int64(3), 3, True),
        (np.array([1.5, 2.0]), [1.5, 2.0], True),
    ],
)
def test_values_are_compared_as_json_without_building_them(value: Any, expected: Any, same: bool):
    sent = json.loads(json.dumps(encode(value, lambda v: {"h": [0, type(v).__name__]})))
    assert same_value(sent, expected) is same


@pytest.mark.parametrize("junk", [{"d": 3}, {"d": [[1]]}, {"d": [[[1], 2]]}, {"t": 1}, {"x": 1}])
def test_junk_is_no_value(junk: Any):
    assert not any(same_value(junk, e) for e in ({}, [], {"1": 2}, 1, None, "x"))


def packed(cases: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def test_layouts_are_read():
    two = StdinTests(["1", "2"], ["3", "4"])
    cases = [{"input": i, "output": o, "testtype": "stdin"} for i, o in (("1", "3"), ("2", "4"))]
    for layout in (
        {"inputs": ["1", "2"], "outputs": ["3", "4"], "fn_name": None},
        {"input_output": json.dumps({"inputs": ["1", "2"], "outputs": ["3", "4"]})},
        {"inputs": np.array(["1", "2"]), "outputs": np.array(["3", "4"])},
        cases,
        json.dumps(cases),
        packed(cases),
        {"public_test_cases": json.dumps(cases[:1]), "private_test_cases": packed(cases[1:])},
    ):
        assert read_tests(layout) == two
    row = {
        "public_test_cases": '[{"input": "[1]\\n2", "output": "[2]", "testtype": "functional"}]',
        "metadata": '{"func_name": "f"}',
    }
    assert read_tests(row) == CallTests("f", [[[1], 2]], [[[2]]])
    prime = {"inputs": [[1, 2]], "outputs": [[3]], "fn_name": "add"}
    assert read_tests(prime) == CallTests("add", [[1, 2]], [[[3], 3]])
    plain = read_tests(["assert max(f(1), 2) == 2", "assert f(g(1)) == 0"])
    assert isinstance(plain, AssertTests) and plain.entries == ["f"]
    setup = {"test_list": ["assert g(f(1))"], "test_setup_code": "def g(x): return x"}
    assert read_tests(setup).entries == ["f"]


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ({"inputs": ["1"], "outputs": []}, "tests have 1 inputs and 0 outputs: pair them"),
        ({"inputs": [], "outputs": []}, "hold no test: give"),
        ({"question": 1}, r"tests of a problem have the keys \['question'\]: give"),
        ([1], r"tests of a problem = \[1\] cannot be read: give"),
        ("not json", "tests of a problem = 'not json' are not JSON: give"),
        (
            [{"input": "1", "output": "1", "testtype": "functional"}],
            'testtype "functional" name no function: add metadata',
        ),
        (calls("f", ("x y", "1")), "a test of a function has 'x y', which is not JSON"),
    ],
)
def test_tests_that_cannot_be_read_are_named(tests: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        read_tests(tests)


def test_packed_tests_run_no_code():
    evil = base64.b64encode(zlib.compress(pickle.dumps(print))).decode()
    with pytest.raises(ConfigError, match="are not JSON: give"):
        read_tests(evil)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 0}, "timeout = 0 is not valid: set it above 0"),
        ({"memory_mb": -1}, "memory_mb = -1 is not valid"),
        ({"workers": 0}, "workers = 0 is not valid: set at least 1"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        CodeGrader(**settings)


@needs_sandbox
def test_responses_and_tests_are_paired(grader: CodeGrader):
    with pytest.raises(ConfigError, match="2 responses have 1 tests: pair them"):
        grader.grade(["a", "b"], [{}])


def test_layouts_with_other_things_inside_are_named() -> None:
    for tests in (
        [{"input": "1"}],
        {"inputs": 5, "outputs": 5},
        {"public_test_cases": ["a"]},
        {"test_list": [1]},
    ):
        with pytest.raises(ConfigError, match="tests of a problem = .* cannot be read"):
            read_tests(tests)


def test_fields_that_a_row_of_a_parquet_file_lacks_are_not_there() -> None:
    row = {"inputs": None, "outputs": None, "test_list": ["assert f() == 1"]}
    assert read_tests(row) == read_tests({"test_list": ["assert f() == 1"]})
