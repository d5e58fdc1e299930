"""Addition with written steps: every column's sum from the units up, then the answer."""

from __future__ import annotations

import random
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


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Arithmetic(WorkedTask):
    """a + b with `digits` digits each: "47+85=" is answered by "12;13;132".

    The steps are 7+5 = 12, then 4+8 and the carry = 13, then the answer; a step builds on what
    the one before wrote, right or wrong. A wrong step has another last digit.
    held_out_share: of the problems, never in training; a+b and b+a are on one side.
    """

    name: ClassVar[str] = "arithmetic"
    digits: Annotated[int, Field(ge=1, le=6)] = 2
    held_out_share: HeldOutShare = 0.0

    @property
    def alphabet(self) -> str:
        return "0123456789+=;"

    @property
    def max_tokens(self) -> int:
        return 4 * self.digits + 2  # two-digit sums with ';', the answer, the EOS

    def problems(self, n: int, rng: random.Random) -> list[Problem]:
        if self.held_out_share:
            found = self._draw(n, rng, held_out=False)
            if not found:
                raise nothing_to_train_on(self.name, self.held_out_share)
            return found + rng.choices(found, k=n - len(found))
        space = range(self._width**2)
        picks = rng.sample(space, n) if n <= len(space) else rng.choices(space, k=n)
        return [self._problem(k) for k in picks]

    def held_out(self, n: int, rng: random.Random) -> list[Problem]:
        refuse_no_split(self.name, self.held_out_share)
        found = self._draw(n, rng, held_out=True)
        return enough(found, n, self.name, self.held_out_share)

    def _draw(self, n: int, rng: random.Random, held_out: bool) -> list[Problem]:
        """n distinct problems of one side of the split, or all of them where there are fewer."""
        seen: set[int] = set()
        found: list[Problem] = []
        while len(found) < n and len(seen) < self._width**2:
            k = rng.randrange(self._width**2)
            if k in seen:
                continue
            seen.add(k)
            a, b = sorted(self._numbers(k))
            if is_held_out(f"arithmetic {a}+{b}", self.held_out_share) == held_out:
                found.append(self._problem(k))
        return found

    def reward(self, response: str, problem: Problem) -> float:
        return float(response.rsplit(";", 1)[-1] == problem.answer)

    def trace(self, problem: Problem, rng: random.Random, corrupt: float = 0.0) -> str:
        a, b = (int(x) for x in prompt_text(problem.prompt).rstrip("=").split("+"))
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

    @property
    def _width(self) -> int:
        """How many numbers of `digits` digits there are."""
        return 9 * 10 ** (self.digits - 1)

    def _numbers(self, k: int) -> tuple[int, int]:
        """The summands of problem k of width x width."""
        low = 10 ** (self.digits - 1)
        return low + k // self._width, low + k % self._width

    def _problem(self, k: int) -> Problem:
        a, b = self._numbers(k)
        return Problem(f"{a}+{b}=", str(a + b), a * 10**self.digits + b)


def _misread(value: int, rng: random.Random) -> int:
    """The number with its last digit replaced by another."""
    digit = rng.randrange(9)
    return value - value % 10 + digit + (digit >= value % 10)
