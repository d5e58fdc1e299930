"""What a reward judges by, and the judges without processes: the task's own, random, constant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from entropy_lab.train.tasks.base import Problem
from entropy_lab.train.tasks.worked import WorkedTask


@dataclass(frozen=True)
class Verdict:
    """reward: unshaped; accuracy: how right the response is; note: "" or why it is so."""

    reward: float
    accuracy: float
    note: str = ""


class Judge(Protocol):
    """Judges responses; the same verdicts for the same arguments.

    One that has a method check(problems) is shown all of them before anything is trained or asked;
    it raises ConfigError for the first one whose answer it cannot judge by.
    """

    def judge(
        self, texts: Sequence[str], problems: Sequence[Problem], seed: int
    ) -> list[Verdict]: ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass(frozen=True)
class TaskJudge:
    """The task's own reward, asked in this process."""

    task: WorkedTask

    def judge(self, texts: Sequence[str], problems: Sequence[Problem], seed: int) -> list[Verdict]:
        values = [self.task.reward(t, p) for t, p in zip(texts, problems, strict=True)]
        return [Verdict(float(value), float(value)) for value in values]

    def close(self) -> None: ...


@dataclass(frozen=True)
class RandomJudge:
    """`value` with `probability`, else 0, whatever the response says (a control).

    A function of (seed, row). The accuracy is that of `own`, the task's judge, so that a log shows
    what training on noise does to it. Spurious rewards: arXiv 2506.10947.
    """

    own: Judge
    value: float
    probability: float

    def judge(self, texts: Sequence[str], problems: Sequence[Problem], seed: int) -> list[Verdict]:
        own = self.own.judge(texts, problems, seed)
        return [
            Verdict(self.value if _uniform(seed, row) < self.probability else 0.0, v.accuracy)
            for row, v in enumerate(own)
        ]

    def close(self) -> None:
        self.own.close()


def _uniform(seed: int, row: int) -> float:
    """In [0, 1): 53 bits of BLAKE2b."""
    digest = hashlib.blake2b(f"reward {seed} {row}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
