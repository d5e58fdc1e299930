"""Tasks that make their problems up and can show how one is worked: those of the warm-up."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks.base import Encode, Place, Problem, Prompt
from entropy_lab.train.tasks.split import held_out_problems


class WorkedTask(ABC):
    """A task that is its own source of problems.

    alphabet: every character of prompts and traces; max_tokens: the longest trace with EOS.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def alphabet(self) -> str: ...

    @property
    @abstractmethod
    def max_tokens(self) -> int: ...

    @abstractmethod
    def problems(self, n: int, rng: random.Random) -> list[Problem]:
        """n training problems, distinct as long as there are enough of them."""

    @abstractmethod
    def held_out(self, n: int, rng: random.Random) -> list[Problem]:
        """n distinct problems that `problems` never draws; ConfigError where there are fewer."""

    @abstractmethod
    def reward(self, response: str, problem: Problem) -> float:
        """1.0 for a right response, else 0.0; any text is allowed."""

    @abstractmethod
    def trace(self, problem: Problem, rng: random.Random, corrupt: float = 0.0) -> str:
        """A worked response; each written step is wrong with probability `corrupt`."""

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    @property
    def summary(self) -> str:
        return ""

    def source(self, encode: Encode) -> Self:
        return self

    @property
    def training(self) -> Sequence[Problem]:
        return ()

    @property
    def chats(self) -> Mapping[str, Prompt]:
        return {}

    def check_evaluable(self, n: int) -> None:
        self.benchmarks(n)

    def draw(self, n: int, place: Place) -> list[Problem]:
        """Fresh problems for each numbered draw of a stream."""
        rng = random.Random(f"{place.seed} {place.name} problems {place.number}")
        return self.problems(n, rng)

    def benchmarks(self, n: int) -> dict[str, list[Problem]]:
        """n held-out problems, the same in every run of equal task settings."""
        if not n:
            raise ConfigError(f"task {self.name} makes its problems up: ask for at least one")
        return {f"{self.name}_heldout": held_out_problems(self, n)}


def worked_task(task: object) -> WorkedTask:
    """`task`, if a model can be made for it; else ConfigError."""
    if isinstance(task, WorkedTask):
        return task
    raise ConfigError(
        f"task {getattr(task, 'name', task)} has no worked examples to make a model from: set "
        "model.path to the folder of a model"
    )
