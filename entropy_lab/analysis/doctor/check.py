"""What a check is: over token rows, a sum over steps and a judgement; over tables, one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from entropy_lab.analysis.doctor.block import Block, Bools, Floats
from entropy_lab.analysis.doctor.facts import Facts
from entropy_lab.analysis.doctor.finding import Verdict


@dataclass(frozen=True)
class Tally:
    """What a row check counted, summed over steps.

    rows looked at, bad among them; worst value and its step; total, square, base: sums whose
    meaning is the check's own; values: a few of them, for quantiles.
    """

    rows: int = 0
    bad: int = 0
    worst: float = 0.0
    step: int = -1
    total: float = 0.0
    square: float = 0.0
    base: float = 0.0
    values: tuple[Floats, ...] = ()

    @classmethod
    def count(cls, step: int, bad: Bools, size: Floats | None = None, **sums: Any) -> Tally:
        """bad (rows,); size (rows,): how far each row is off, of which the largest bad is kept."""
        number = int(bad.sum())
        worst = float(np.max(size[bad])) if size is not None and number else 0.0
        return cls(len(bad), number, worst, step if number else -1, **sums)

    def __add__(self, other: Tally) -> Tally:
        graver = other.step >= 0 and (self.step < 0 or other.worst > self.worst)
        return Tally(
            self.rows + other.rows,
            self.bad + other.bad,
            other.worst if graver else self.worst,
            other.step if graver else self.step,
            self.total + other.total,
            self.square + other.square,
            self.base + other.base,
            self.values + other.values,
        )

    @property
    def share(self) -> float:
        return self.bad / self.rows if self.rows else 0.0

    def seen(self, what: str) -> str:
        """`what` of how many rows, with the worst step."""
        where = f", first or worst in step {self.step}" if self.step >= 0 else ""
        return f"{self.bad:,} of {self.rows:,} {what}{where}"


@dataclass(frozen=True)
class RowCheck:
    """needs: token columns without which it is skipped; measure: one step, None where it does not
    apply; judge: the sum over all steps."""

    needs: tuple[str, ...]
    measure: Callable[[Block, Facts], Tally | None]
    judge: Callable[[Tally, Facts], Verdict]


RunCheck = Callable[[Facts], Verdict | None]
