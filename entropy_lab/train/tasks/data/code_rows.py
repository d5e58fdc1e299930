"""Rows of coding benchmarks as they are published, whose tests stand in several columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class CodeLayout(NamedTuple):
    """tests: columns that every row has; more: those that some have and the tests need as well;
    prompt: the question, in the first of these; shown: what follows it."""

    tests: tuple[str, ...]
    more: tuple[str, ...]
    prompt: tuple[str, ...]
    shown: Callable[[Row], str]


def _starter(row: Row) -> str:
    starter = str(row.get("starter_code") or "").rstrip()
    if starter:
        return f"\n\nBegin with this code:\n```python\n{starter}\n```\n"
    return "\n\nThe program reads standard input and prints to standard output.\n"


def _asserts(row: Row) -> str:
    tests = "\n".join(map(str, row["test_list"]))
    return f"\n\nIt has to pass these tests:\n```python\n{tests}\n```\n"


# By the columns of the data sets livecodebench/code_generation_lite, google-research-datasets/mbpp,
# openai/openai_humaneval and codeparrot/apps.
CODE_LAYOUTS: dict[str, CodeLayout] = {
    "LiveCodeBench": CodeLayout(
        ("public_test_cases", "private_test_cases"), ("metadata",), ("question_content",), _starter
    ),
    "MBPP": CodeLayout(
        ("test_list",), ("test_setup_code", "test_imports"), ("text", "prompt"), _asserts
    ),
    "HumanEval": CodeLayout(("test", "entry_point"), ("prompt",), ("prompt",), lambda row: ""),
    "APPS": CodeLayout(("input_output",), (), ("question",), _starter),
}


def code_layout(rows: Iterable[Row]) -> CodeLayout | None:
    """The layout whose columns all of these rows have; None for rows of another kind."""
    known = list(rows)
    for layout in CODE_LAYOUTS.values():
        if known and all(row.get(name) is not None for row in known for name in layout.tests):
            return layout
    return None


def standard_row(row: Row, layout: CodeLayout) -> dict[str, Any]:
    """The row with "prompt" and "ground_truth", which are its question and all of its tests; a
    prompt that is a chat already stays as it is."""
    tests = {n: row[n] for n in (*layout.tests, *layout.more) if row.get(n) is not None}
    rest = {name: value for name, value in row.items() if name not in tests}
    prompt = row.get("prompt")
    if not isinstance(prompt, list):
        question = next((row[name] for name in layout.prompt if row.get(name)), None)
        prompt = question + layout.shown(row) if isinstance(question, str) else question
    return {**rest, "prompt": prompt, "ground_truth": tests}
