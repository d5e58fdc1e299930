"""Whether what a program printed or returned is what the test expects."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any


def same_output(printed: str, expected: str) -> bool:
    """Line by line without outer whitespace: equal text, or equal numbers one by one.

    LiveCodeBench's rule (repository LiveCodeBench/LiveCodeBench, lcb_runner/evaluation/
    testing_util.py): blank lines at both ends do not count, the number of lines must agree, and a
    line that differs passes only where each of its words is the same decimal number exactly, so
    1.0 is 1 and 0.3333333 is not 1/3. There is no tolerance.
    """
    ours = [line.strip() for line in printed.strip().split("\n")]
    theirs = [line.strip() for line in expected.strip().split("\n")]
    if len(ours) != len(theirs):
        return False
    return all(a == b or _same_numbers(a, b) for a, b in zip(ours, theirs, strict=True))


def _same_numbers(a: str, b: str) -> bool:
    try:
        return [Decimal(word) for word in a.split()] == [Decimal(word) for word in b.split()]
    except (InvalidOperation, ValueError):
        return False


def same_value(answer: Any, expected: Any) -> bool:
    """Whether an answer in the JSON of `jail.wire` is this JSON value, exactly.

    Tuples are lists and numbers are equal by value, as in LiveCodeBench; a dict's int keys are the
    strings that JSON makes of them. The answer is untrusted, so nothing is built from it: no set
    or dict with keys of its choice, no object of its classes.
    """
    if isinstance(answer, dict) and len(answer) == 1:
        [(letter, held)] = answer.items()
        if letter == "t":
            return isinstance(held, list) and same_value(held, expected)
        if letter == "i":
            return isinstance(expected, int) and isinstance(held, str) and held == hex(expected)
        if letter == "d":
            return _same_dict(held, expected)
        return False
    if isinstance(answer, list):
        if not isinstance(expected, list) or len(answer) != len(expected):
            return False
        return all(same_value(a, b) for a, b in zip(answer, expected, strict=True))
    return (
        not isinstance(expected, list | dict)
        and not isinstance(answer, dict)
        and (answer == expected)
    )


def _same_dict(pairs: Any, expected: Any) -> bool:
    if not isinstance(expected, dict) or not isinstance(pairs, list):
        return False
    seen = set()  # keys of the expected dict only
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or isinstance(pair[0], list | dict):
            return False
        key = pair[0] if isinstance(pair[0], str) else str(pair[0])
        if key not in expected or key in seen or not same_value(pair[1], expected[key]):
            return False
        seen.add(key)
    return len(seen) == len(expected)
