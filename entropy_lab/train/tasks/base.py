"""What every task offers: problems, the reward of a response, and worked traces for the warm-up."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class Problem:
    """prompt is what the model reads; equal problems have equal prompt_id (int64) in every run.

    prompt: a text, or messages {role, content}; answer: the ground truth; extra: extra_info.
    """

    prompt: Any
    answer: Any
    prompt_id: int
    data_source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """alphabet: every character of prompts and traces; max_tokens: the longest trace with EOS."""

    name: ClassVar[str]

    @property
    def alphabet(self) -> str: ...

    @property
    def max_tokens(self) -> int: ...

    def problems(self, n: int, rng: random.Random) -> list[Problem]:
        """n training problems, distinct as long as there are enough of them."""
        ...

    def held_out(self, n: int, rng: random.Random) -> list[Problem]:
        """n distinct problems that `problems` never draws; ConfigError where there are fewer."""
        ...

    def reward(self, response: str, problem: Problem) -> float:
        """1.0 for a right response, else 0.0; any text is allowed."""
        ...

    def trace(self, problem: Problem, rng: random.Random, corrupt: float = 0.0) -> str:
        """A worked response; each written step is wrong with probability `corrupt`."""
        ...
