"""The problems of data files, at hand: drawn in their order, or evaluated on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks.base import Place, Problem, Prompt, prompt_text
from entropy_lab.train.tasks.data.load import Loaded, named
from entropy_lab.train.tasks.data.order import Order


@dataclass(frozen=True)
class DataSource:
    """What the files of a `Data` hold, and the order in which it is trained on."""

    train: list[Loaded]
    validation: list[Loaded]
    order: Order

    def __post_init__(self) -> None:
        names = [part.name for part in self.validation]
        for part in self.validation:
            if names.count(part.name) > 1:
                twice = [p.path for p in self.validation if p.name == part.name]
                raise ConfigError(
                    f"task.validation: {' and '.join(twice)} are both named {part.name!r}: rename "
                    "one, since evaluations go by these names"
                )

    @property
    def training(self) -> list[Problem]:
        return self._training

    @cached_property
    def _training(self) -> list[Problem]:
        return [p for part in self.train for p in part.problems]

    @property
    def facts(self) -> dict[str, Any]:
        """Rows read, used and left out of each path, and a hash of the training problems."""
        ids = [p.prompt_id for p in self.training]
        digest = hashlib.blake2b(repr([self.order, ids]).encode(), digest_size=8)
        parts = {"train": self.train, "validation": self.validation}
        counts = {name: [part.facts() for part in loaded] for name, loaded in parts.items()}
        return {**counts, "epoch": self.order.epoch, "fingerprint": digest.hexdigest()}

    @property
    def summary(self) -> str:
        parts = [_counted("train on", self.train)]
        if self.validation:
            parts.append(_counted("evaluate on", self.validation))
            once = sum(len(distinct(p.problems)) for p in self.validation)
            parts[-1] += f" ({once:,} different ones)"
        bad = [f"{p.path}: {named(p)}" for p in (*self.train, *self.validation) if p.bad]
        return f"data: {'; '.join([*parts, *bad])}"

    @property
    def chats(self) -> dict[str, Prompt]:
        """By `prompt_text`, the training prompts that are chats."""
        prompts = [p.prompt for p in self.training if not isinstance(p.prompt, str)]
        return {prompt_text(prompt): prompt for prompt in prompts}

    def draw(self, n: int, place: Place) -> list[Problem]:
        """The next n problems of the stream `place.stream`, after the `place.first` before them."""
        rows = self.order.rows(f"{place.seed} {place.stream} problems", place.first, n)
        return [self.training[row] for row in rows]

    def benchmarks(self, n: int) -> dict[str, list[Problem]]:
        """The distinct problems of each validation file, at most n of it (0: all)."""
        return {part.name: distinct(part.problems)[: n or None] for part in self.validation}


def distinct(problems: list[Problem]) -> list[Problem]:
    """Each problem once, where it first stands: files may repeat one for every sample."""
    found: dict[int, Problem] = {}
    for problem in problems:
        found.setdefault(problem.prompt_id, problem)
    return [*found.values()]


def _counted(verb: str, parts: list[Loaded]) -> str:
    used, overlong = sum(len(p.problems) for p in parts), sum(p.overlong for p in parts)
    left_out = f", {overlong:,} left out for their length" if overlong else ""
    many = f" of {len(parts)} files" if len(parts) > 1 else ""
    return f"{used:,} problems{many} to {verb}{left_out}"
