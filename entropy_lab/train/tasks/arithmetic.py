"""Addition with written steps: every column's sum from the units up, then the answer."""

from __future__ import annotations

import random
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from entropy_lab.train.tasks.base import Problem


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Arithmetic:
    """a + b with `digits` digits each: "47+85=" is answered by "12;13;132".

    The steps are 7+5 = 12, then 4+8 and the carry = 13, then the answer; a step builds on what
    the one before wrote, right or wrong. A wrong step has another last digit.
    """

    name: ClassVar[str] = "arithmetic"
    digits: Annotated[int, Field(ge=1, le=6)] = 2

    @property
    def alphabet(self) -> str:
        return "0123456789+=;"

    @property
    def max_tokens(self) -> int:
        return 4 * self.digits + 2  # two-digit sums with ';', the answer, the EOS

    def problems(self, n: int, rng: random.Random) -> list[Problem]:
        low = 10 ** (self.digits - 1)
        width = 9 * low
        space = range(width * width)
        picks = rng.sample(space, n) if n <= len(space) else rng.choices(space, k=n)
        return [self._problem(low + k // width, low + k % width) for k in picks]

    def reward(self, response: str, problem: Problem) -> float:
        return float(response.rsplit(";", 1)[-1] == problem.answer)

    def trace(self, problem: Problem, rng: random.Random, corrupt: float = 0.0) -> str:
        a, b = (int(x) for x in problem.prompt.rstrip("=").split("+"))
        written, carry, answer = [], 0, 0
        for column in range(self.digits):
            base = 10**column
            total = a // base % 10 + b // base % 10 + carry
            if rng.random() < corrupt:
                total = _misread(total, rng)
            written.append(total)
            carry = total // 10
            answer += total % 10 * base
        answer += carry * 10**self.digits
        if rng.random() < corrupt:
            answer = _misread(answer, rng)
        return ";".join(str(x) for x in [*written, answer])

    def _problem(self, a: int, b: int) -> Problem:
        return Problem(f"{a}+{b}=", str(a + b), a * 10**self.digits + b)


def _misread(value: int, rng: random.Random) -> int:
    """The number with its last digit replaced by another."""
    digit = rng.randrange(9)
    return value - value % 10 + digit + (digit >= value % 10)
