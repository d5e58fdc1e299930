"""Reward functions of the user: FILE.py:CALLABLE with the signature of verl or of TRL."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropy_lab.errors import ConfigError, nearest
from entropy_lab.train.rewards.judge import Verdict
from entropy_lab.train.tasks.base import Problem
from entropy_lab.user_code import first_line, load_file, own_names

FORMS = (
    "compute_score(data_source, solution_str, ground_truth, extra_info=None) as in verl, or "
    "reward(completions, **columns) as in TRL"
)


@dataclass(frozen=True)
class UserJudge:
    """A user's function, called in this process; async functions are waited for.

    verl: once a response, by keyword; a number, or a dict with "score" and perhaps "acc" (the
    accuracy). TRL: once for all, with `prompts`, `completions` and the columns that it names (all
    of them where it takes **kwargs): ground_truth, answer, solution, data_source, extra_info and
    the keys of extra_info; of chat problems a completion is [{"role": "assistant", "content":
    ...}]. A None means not scored: reward 0 and a note. Raises ConfigError naming the function,
    the row and what it gave where that is not a finite number.
    """

    name: str
    function: Callable[..., Any]
    is_batched: bool

    def judge(self, texts: Sequence[str], problems: Sequence[Problem], seed: int) -> list[Verdict]:
        if not texts:
            return []
        if self.is_batched:
            given = self._batch(texts, problems)
        else:
            given = self._each(texts, problems)
        return [self._verdict(row, value) for row, value in enumerate(given)]

    def close(self) -> None: ...

    def _each(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Any]:
        """verl's form."""
        takes = _taken(self.function)
        given = []
        for row, (text, problem) in enumerate(zip(texts, problems, strict=True)):
            columns = {
                "data_source": problem.data_source,
                "solution_str": text,
                "ground_truth": problem.answer,
                "extra_info": dict(problem.extra),
            }
            wanted = {k: v for k, v in columns.items() if takes is None or k in takes}
            given.append(self._called(f"row {row}", wanted))
        return given

    def _batch(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Any]:
        """TRL's form."""
        takes, columns = _taken(self.function), _columns(texts, problems)
        required = {
            name
            for name, p in inspect.signature(self.function).parameters.items()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        if missing := sorted(required - set(columns)):
            known = nearest(missing[0], columns)
            raise ConfigError(f"{self.name} asks for {missing[0]!r}, which no problem has: {known}")
        wanted = {k: v for k, v in columns.items() if takes is None or k in takes}
        given = self._called(f"{len(texts)} completions", wanted)
        try:
            given = list(given)
        except TypeError:
            raise ConfigError(
                f"{self.name} gave {given!r:.80} for {len(texts)} completions: return a list with "
                "one number or None for each"
            ) from None
        if len(given) != len(texts):
            raise ConfigError(
                f"{self.name} gave {len(given)} values for {len(texts)} completions: return one "
                "number or None for each"
            )
        return given

    def _called(self, where: str, arguments: dict[str, Any]) -> Any:
        try:
            result = self.function(**arguments)
            return _waited(result) if inspect.iscoroutine(result) else result
        except Exception as error:  # the user's own function may raise whatever it likes
            raise ConfigError(f"{self.name} failed at {where}: {first_line(error)}") from error

    def _verdict(self, row: int, given: Any) -> Verdict:
        if given is None and self.is_batched:
            return Verdict(0.0, 0.0, "not scored")
        if isinstance(given, Mapping) and not self.is_batched:
            if "score" not in given:
                raise ConfigError(
                    f'{self.name} gave a dict without "score" at row {row}: {given!r:.80}; add it'
                )
            score = self._number(row, given["score"])
            return Verdict(score, self._number(row, given.get("acc", score)))
        value = self._number(row, given)
        return Verdict(value, value)

    def _number(self, row: int, given: Any) -> float:
        try:
            value = float(given) if not isinstance(given, str | bytes) else math.nan
        except (TypeError, ValueError, RuntimeError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            kind = "" if isinstance(given, float) else f" ({type(given).__name__})"
            raise ConfigError(
                f"{self.name} gave {given!r:.80}{kind} at row {row}: return a finite number"
            )
        return value


def user_judge(name: str) -> UserJudge:
    """The judge that "FILE.py:CALLABLE" names; the file is looked for from the working directory.

    Raises ConfigError for a file that cannot be loaded, a name it does not have, or parameters
    that are those of neither form.
    """
    place, _, callable_name = name.rpartition(":")
    if not place.endswith(".py"):
        place, callable_name = name, ""
    module = load_file(Path(place), "the name of a reward")
    if not callable_name:
        raise ConfigError(f"{name} names no callable: write {place}:{own_names(module)[0]}")
    function = getattr(module, callable_name, None)
    if function is None:
        raise ConfigError(
            f"{place} has no {callable_name!r}: {nearest(callable_name, own_names(module))}"
        )
    if not callable(function) or isinstance(function, type):
        raise ConfigError(f"{name} is {type(function).__name__!r}, no function: write {FORMS}")
    return UserJudge(name, function, _is_batched(name, function))


def _is_batched(name: str, function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters
    if "completions" in parameters:
        return True
    if "solution_str" in parameters:
        return False
    shown = ", ".join(parameters) or "nothing"
    raise ConfigError(f"{name} takes ({shown}), which no known reward does: write {FORMS}")


def _taken(function: Callable[..., Any]) -> set[str] | None:
    """The parameters that can be given by name; None where any can."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return set(parameters)


def _columns(texts: Sequence[str], problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """What TRL hands to a reward function: one list a column, a value for each response."""
    chats = [not isinstance(p.prompt, str) for p in problems]
    said = [
        [{"role": "assistant", "content": text}] if chat else text
        for text, chat in zip(texts, chats, strict=True)
    ]
    extra = {key for p in problems for key in p.extra}
    answers = [p.answer for p in problems]
    return {
        "solution": answers,
        **{key: [p.extra.get(key) for p in problems] for key in sorted(extra)},
        "prompts": [[*p.prompt] if c else p.prompt for p, c in zip(problems, chats, strict=True)],
        "completions": said,
        "ground_truth": answers,
        "answer": answers,
        "data_source": [p.data_source for p in problems],
        "extra_info": [dict(p.extra) for p in problems],
    }


def _waited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end in a thread of its own: the caller, a notebook, may have a loop running."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.extend((asyncio.run(coroutine), None))
        except BaseException as error:  # raised again in the thread that asked
            outcome.extend((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
