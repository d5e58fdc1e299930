"""What every task offers: problems to draw, benchmarks to evaluate on, and a reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

# What the model is asked: text as it stands, or a chat of {"role": ..., "content": ...}.
Prompt = str | tuple[Mapping[str, str], ...]
# The token ids of a prompt, by the model's own tokenizer.
Encode = Callable[[Prompt], list[int]]


@dataclass(frozen=True)
class Problem:
    """One question and what its responses are graded by.

    answer: the ground truth, in the form that the reward reads; equal problems have equal
    prompt_id (int64) in every run; data_source and extra are columns of a data file.
    """

    prompt: Prompt
    answer: Any
    prompt_id: int
    data_source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def prompt_text(prompt: Prompt) -> str:
    """One string for the log: a chat as "role: content" paragraphs."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt)


@dataclass(frozen=True)
class Place:
    """Where a draw of problems stands, which is all that it may depend on.

    seed: run.seed; name and number: of the draw; stream: what it is a part of ("rollout",
    "fixed"); first: how many problems of the stream were drawn before.
    """

    seed: int
    name: str
    number: int
    stream: str
    first: int


class Source(Protocol):
    """The problems of a task, at hand."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What run.json keeps of them as "data"; empty for problems that are made up."""
        ...

    @property
    def summary(self) -> str:
        """One line for the user, "" for none."""
        ...

    @property
    def training(self) -> Sequence[Problem]:
        """The problems that are drawn from, where they are files' and not made up."""
        ...

    @property
    def chats(self) -> Mapping[str, Prompt]:
        """By `prompt_text`, which is what the log has, the training prompts that are chats."""
        ...

    def draw(self, n: int, place: Place) -> list[Problem]:
        """n training problems: a function of the settings and the place alone."""
        ...

    def benchmarks(self, n: int) -> dict[str, list[Problem]]:
        """By name, what the policy is evaluated on; ConfigError where a task has fewer than n."""
        ...


class Task(Protocol):
    """Settings that name problems; nothing is read before `source`."""

    name: ClassVar[str]

    def source(self, encode: Encode) -> Source:
        """Its problems; `encode` tells which prompts are too long."""
        ...

    def check_evaluable(self, n: int) -> None:
        """Raise ConfigError where it cannot be evaluated on n problems; nothing is read."""
        ...
