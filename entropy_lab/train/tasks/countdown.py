"""Countdown: reach a target from given numbers with + - * /, each number at most once."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from fractions import Fraction
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from entropy_lab.train.tasks.base import Problem, prompt_text
from entropy_lab.train.tasks.split import (
    HeldOutShare,
    enough,
    is_held_out,
    nothing_to_train_on,
    refuse_no_split,
)
from entropy_lab.train.tasks.worked import WorkedTask

_LONGEST = 64  # characters; bounds the recursion, and with it the size of every number
_OPERATORS = "+-*/"
# How often to draw before a side of the split counts as empty, and as used up.
_TRIES = 100_000
_REPEATS = 1_000


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Countdown(WorkedTask):
    """`numbers` integers of 1..`largest` and a target that some of them reach.

    "3,7,25:54=" asks for an expression such as "(25-7)*3", in which each given number stands at
    most once; it is worth 1 when its exact value is the target. Targets are 1..`top`, solvable,
    and never one of the numbers. held_out_share: of the problems, never in training; the order
    of the numbers makes no difference to that.
    """

    name: ClassVar[str] = "countdown"
    numbers: Annotated[int, Field(ge=2, le=6)] = 3
    largest: Annotated[int, Field(ge=4, le=100)] = 20
    top: Annotated[int, Field(ge=10, le=9999)] = 99
    held_out_share: HeldOutShare = 0.0

    @property
    def alphabet(self) -> str:
        return "0123456789+-*/(),:="

    @property
    def max_tokens(self) -> int:
        # Every number, an operator and a pair of brackets per joint, and the EOS.
        return self.numbers * len(str(self.largest)) + 3 * (self.numbers - 1) + 1

    def problems(self, n: int, rng: random.Random) -> list[Problem]:
        found: dict[str, Problem] = {}
        repeats: list[Problem] = []
        # Small settings have few problems: after enough misses, repeats are let in.
        while len(found) + len(repeats) < n:
            problem = self._problem(rng, held_out=False)
            if problem is None:
                raise nothing_to_train_on(self.name, self.held_out_share)
            if prompt_text(problem.prompt) not in found:
                found[prompt_text(problem.prompt)] = problem
            elif rng.random() < 0.02:
                repeats.append(problem)
        return [*found.values(), *repeats]

    def held_out(self, n: int, rng: random.Random) -> list[Problem]:
        refuse_no_split(self.name, self.held_out_share)
        found: dict[str, Problem] = {}
        in_vain = 0
        while len(found) < n and in_vain < _REPEATS:
            problem = self._problem(rng, held_out=True)
            if problem is None:
                break
            in_vain = in_vain + 1 if prompt_text(problem.prompt) in found else 0
            found.setdefault(prompt_text(problem.prompt), problem)
        return enough([*found.values()], n, self.name, self.held_out_share)

    def reward(self, response: str, problem: Problem) -> float:
        given, target = prompt_text(problem.prompt).rstrip("=").split(":")
        numbers = [int(x) for x in given.split(",")]
        return float(evaluate(response, numbers) == int(target))

    def trace(self, problem: Problem, rng: random.Random, corrupt: float = 0.0) -> str:
        """The expression the problem was built from; numbers and operators may be swapped."""
        symbols = []
        for symbol in _symbols(problem.answer) or []:
            wrong = symbol not in "()" and rng.random() < corrupt
            if wrong and symbol in _OPERATORS:
                symbol = rng.choice([o for o in _OPERATORS if o != symbol])
            elif wrong:
                symbol = str(rng.randint(1, self.largest))
            symbols.append(symbol)
        return "".join(symbols)

    def _problem(self, rng: random.Random, held_out: bool) -> Problem | None:
        """A problem of one side of the split; None where that side seems to be empty."""
        for _ in range(_TRIES):
            numbers = [rng.randint(1, self.largest) for _ in range(self.numbers)]
            value, text = _build(rng.sample(numbers, rng.randint(2, self.numbers)), rng)
            if not 1 <= value <= self.top or value in numbers:
                continue
            key = f"countdown {','.join(map(str, sorted(numbers)))}:{value}"
            if is_held_out(key, self.held_out_share) == held_out:
                prompt = f"{','.join(map(str, numbers))}:{value}="
                digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
                return Problem(prompt, text, int.from_bytes(digest, "big") >> 1)
        return None


def _build(numbers: list[int], rng: random.Random) -> tuple[int, str]:
    """Join random pairs until one whole number is left: (value, expression)."""
    pool = [(x, str(x), False) for x in numbers]
    while len(pool) > 1:
        (a, left, left_joined), (b, right, right_joined) = (
            pool.pop(rng.randrange(len(pool))) for _ in range(2)
        )
        signs = [o for o in _OPERATORS if o != "/" or (b != 0 and a % b == 0)]
        sign = rng.choice(signs)
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if sign == "/" else 0}[sign]
        left = f"({left})" if left_joined else left
        right = f"({right})" if right_joined else right
        pool.append((value, left + sign + right, True))
    return pool[0][0], pool[0][1]


def evaluate(expression: str, numbers: list[int]) -> Fraction | None:
    """The exact value of an expression over `numbers`, each used at most once; else None.

    Grammar: sum = product (("+" | "-") product)*, product = atom (("*" | "/") atom)*,
    atom = number | "(" sum ")". No signs, no leading zeros, no blanks. None for any other text,
    division by zero and more than 64 characters; nothing is ever executed.
    """
    symbols = _symbols(expression)
    if symbols is None:
        return None
    used = Counter(int(s) for s in symbols if s.isdecimal())
    if not used or used - Counter(numbers):
        return None
    try:
        value, end = _sum(symbols, 0)
    except (ZeroDivisionError, _Malformed):
        return None
    return value if end == len(symbols) else None


class _Malformed(Exception):
    pass


def _symbols(expression: str) -> list[str] | None:
    if len(expression) > _LONGEST:
        return None
    symbols: list[str] = []
    joined = False
    for char in expression:
        digit = char in "0123456789"
        if not digit and char not in "+-*/()":
            return None
        if digit and joined:
            symbols[-1] += char
        else:
            symbols.append(char)
        joined = digit
    return None if any(len(s) > 1 and s[0] == "0" for s in symbols) else symbols


def _sum(symbols: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _product(symbols, at)
    while at < len(symbols) and symbols[at] in "+-":
        right, end = _product(symbols, at + 1)
        value = value + right if symbols[at] == "+" else value - right
        at = end
    return value, at


def _product(symbols: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _atom(symbols, at)
    while at < len(symbols) and symbols[at] in "*/":
        right, end = _atom(symbols, at + 1)
        value = value * right if symbols[at] == "*" else value / right
        at = end
    return value, at


def _atom(symbols: list[str], at: int) -> tuple[Fraction, int]:
    if at < len(symbols) and symbols[at].isdecimal():
        return Fraction(int(symbols[at])), at + 1
    if at < len(symbols) and symbols[at] == "(":
        value, at = _sum(symbols, at + 1)
        if at < len(symbols) and symbols[at] == ")":
            return value, at + 1
    raise _Malformed
