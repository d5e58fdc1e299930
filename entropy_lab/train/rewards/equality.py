r"""Whether two answers are the same: by their text, as numbers, part by part, by math-verify.

Sources: the package math-verify (github.com/huggingface/Math-Verify) does the algebra; the steps
before it decide what it would get wrong: words (to it "east" is e*a*s*t, so "seat" is the same),
bases (it drops them), small decimals (it rounds to six places), choices, mixed numbers in text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from entropy_lab.train.rewards.literals import based, close, number, same_number
from entropy_lab.train.rewards.notation import notation, squeezed, without_text
from entropy_lab.train.rewards.structure import Sequence, equation, sequence, union

LONGEST = 1000  # characters; longer answers are compared as text (the longest of MATH-500 has 53)
_DEPTH = 4  # of nested tuples and sets
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]")
_CHOICE = re.compile(r"\(([A-Z])\)|([A-J])")
_CHOSEN = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])(?=[.):]|$))[.):]*(?: .*)?")


def same_answer(gold: str, given: str) -> bool:
    """Whether `given` is the answer `gold`; not symmetric: where `gold` is the shorter it rules.

    Both as a person wrote them. May take very long or exhaust the memory on hostile input: call
    it in a process that can be killed.
    """
    gold, given = notation(gold), notation(given)
    if not gold or not given:
        return False
    if max(len(gold), len(given)) > LONGEST:
        return squeezed(gold) == squeezed(given)
    return _same(gold, given, _DEPTH)


def _same(gold: str, given: str, depth: int) -> bool:
    verdict = _as_written(gold, given)
    if verdict is not None:
        return verdict
    if depth:
        verdict = _as_equations(gold, given, depth - 1)
    if depth and verdict is None:
        verdict = _part_by_part(gold, given, depth - 1)
    return _by_algebra(gold, given) if verdict is None else verdict


def _as_written(gold: str, given: str) -> bool | None:
    """By numbers, text, choice letters, words and bases; None where these cannot tell."""
    a, b = number(gold), number(given)
    if a and b and (same_number(a, b) or not (a.grouped or b.grouped)):
        return same_number(a, b)
    if squeezed(gold) == squeezed(given):
        return True
    gold, given = (without_text(x).strip() for x in (gold, given))
    if choice := _CHOICE.fullmatch(gold):
        chosen = _CHOSEN.fullmatch(given)
        if chosen:
            return (chosen[1] or chosen[2]).upper() == (choice[1] or choice[2])
    if len(gold) == len(given) == 1 and (gold + given).isalpha():
        return gold == given  # math-verify takes k and K as one
    if _WORDS.fullmatch(gold) and _WORDS.fullmatch(given) and max(len(gold), len(given)) > 2:
        words = [re.sub("[ '-]", "", x).casefold() for x in (gold, given)]
        if words[0] == words[1] or min(map(len, words)) > 3:
            return words[0] == words[1]
    left, right = based(gold), based(given)
    if left and right and (left[1] or right[1]):
        bases = {base for _, base in (left, right) if base}
        return left[0] == right[0] and len(bases) == 1
    return None


def _as_equations(gold: str, given: str, depth: int) -> bool | None:
    """x = 5 is 5, and x = 5 is not y = 5; None unless one side is an equation of that kind."""
    if any(len(_elements(x)) > 1 for x in (gold, given)):
        return None
    a, b = equation(gold), equation(given)
    if a and b:
        return _same(a[1], b[1], depth) if a[0] and a[0] == b[0] else None
    if b:
        return _same(gold, b[1], depth)
    return _same(a[1], given, depth) if a and a[0] else None


def _elements(text: str) -> tuple[str, ...]:
    found = sequence(text)
    return found.elements if found and not found.opening else (text,)


def _part_by_part(gold: str, given: str, depth: int) -> bool | None:
    """Tuples and intervals in order, sets, lists and unions in any; None where there are none."""
    pieces = union(gold), union(given)
    if len(pieces[0]) > 1 and len(pieces[0]) == len(pieces[1]):
        return _in_any_order(*pieces, depth) or None
    a, b = sequence(gold), sequence(given)
    if a is None and b is None:
        return None
    if a is None or b is None:
        return _one_of_many(gold, given, a, b, depth)
    if a.is_ordered and b.is_ordered and (a.opening, a.closing) != (b.opening, b.closing):
        # A vector may be written with either brackets; of two numbers it could be an interval.
        if len(a.elements) == 2 or len(b.elements) == 2:
            return False
    if a.is_ordered or b.is_ordered:
        if "\\{" in (a.opening, b.opening) or len(a.elements) != len(b.elements):
            return False
        pairs = zip(a.elements, b.elements, strict=True)
        return all(_same(x, y, depth) for x, y in pairs)
    return _in_any_order(a.elements, b.elements, depth)


def _one_of_many(
    gold: str, given: str, a: Sequence | None, b: Sequence | None, depth: int
) -> bool | None:
    """One side is a single answer: a set of one element is that element, a longer list is not."""
    listed = a or b
    assert listed is not None
    if listed.is_ordered:
        return None  # an interval may be written as an inequality
    if len(listed.elements) == 1:
        only = listed.elements[0]
        return _same(only, given, depth) if a else _same(gold, only, depth)
    return None if a else False


def _in_any_order(gold: tuple[str, ...], given: tuple[str, ...], depth: int) -> bool:
    """Equal as sets: each of one has its equal among the other."""
    if max(len(gold), len(given)) > 64:
        return sorted(map(squeezed, gold)) == sorted(map(squeezed, given))
    found = [[_same(x, y, depth) for y in given] for x in gold]
    return all(map(any, found)) and all(map(any, zip(*found, strict=True)))


def _by_algebra(gold: str, given: str) -> bool:
    """math-verify's verdict, unless it rests on rounding small numbers."""
    from math_verify import verify

    a, b = _parsed(gold), _parsed(given)
    if not (a and b):
        return False
    alike = verify(a, b, strict=True, allow_set_relation_comp=True, timeout_seconds=None)
    return alike and not _rounded_away(a[0], b[0])


@lru_cache(maxsize=256)
def _parsed(text: str) -> list[Any]:
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units are dropped by `number`; math-verify's list would drop the m of 2m as well.
    rules = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    # The plain-number extractor would take some number out of what it cannot read.
    how = [LatexExtractionConfig(normalization_config=rules)]
    return parse(f"${text}$", how, parsing_timeout=None)  # type: ignore[arg-type]


def _rounded_away(gold: Any, given: Any) -> bool:
    """Whether two values that math-verify takes as one differ by more than `close` allows."""
    from sympy import Expr

    if not (isinstance(gold, Expr) and isinstance(given, Expr)):
        return False
    if not (gold.is_number and given.is_number and gold != given):
        return False
    try:
        a, b = float(gold.doit()), float(given.doit())
    except (TypeError, OverflowError, ValueError):  # complex, infinite or not evaluated
        return False
    percent = any(close(x, y) for x in (a, 100 * a) for y in (b, 100 * b))
    return not percent and abs(a - b) > 1e-12 * max(abs(a), abs(b))
