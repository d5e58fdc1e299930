"""From a row of a data file to a problem, or to the reason why it is none."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from entropy_lab.train.tasks.base import Problem, Prompt

# Where a prompt and its ground truth stand, by what is common: verl, TRL, then plain JSON lines.
PROMPTS = ("prompt", "problem", "question")
ANSWERS = ("reward_model.ground_truth", "ground_truth", "answer", "target", "solution")


@dataclass(frozen=True)
class Keys:
    """The columns of a problem, "a.b" being column b of column a, and what is done to its text.

    chat: text becomes the user's message of a chat; suffix is added to the text, or to the last
    message of a chat.
    """

    prompt: str
    answer: str
    source: str = "data_source"
    extra: str = "extra_info"
    chat: bool = False
    suffix: str = ""


def lookup(row: Mapping[str, Any], key: str) -> Any:
    """The value at `key`, None where there is none; "a.b" also reads b within a."""
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def first_present(rows: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> str | None:
    """The first of `keys` that has a value in some row."""
    known = list(rows)
    return next((k for k in keys if any(lookup(row, k) is not None for row in known)), None)


def problem_of(row: Mapping[str, Any], keys: Keys, name: str) -> Problem | str:
    """The problem of a row, or why it cannot be used; `name` is the source where it has none.

    prompt: text, or messages {role, content} of which the last is not the assistant's; answer:
    text, a finite number, or a list or table that is not empty. extra: the table at keys.extra and
    every other column.
    """
    prompt = _prompt(lookup(row, keys.prompt), keys)
    if isinstance(prompt, _Bad):
        return prompt.why
    answer = lookup(row, keys.answer)
    if why := _bad_answer(answer, keys.answer):
        return why
    inner = lookup(row, keys.extra)
    used = {keys.prompt, keys.answer, keys.source, keys.extra}
    extra = {k: v for k, v in row.items() if k not in used and not k.startswith("__index_level_")}
    extra |= inner if isinstance(inner, Mapping) else {}
    source = lookup(row, keys.source)
    return Problem(prompt, answer, content_id(prompt, answer), str(source or name), extra)


def content_id(prompt: Prompt, answer: Any) -> int:
    """63 bits of BLAKE2b of prompt and answer: equal content has one id, in whatever file."""
    content = prompt if isinstance(prompt, str) else [[m["role"], m["content"]] for m in prompt]
    text = json.dumps([content, answer], sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class _Bad:
    why: str


def _prompt(value: Any, keys: Keys) -> Prompt | _Bad:
    if value is None:
        return _Bad(f"no prompt in {keys.prompt!r}")
    if isinstance(value, str):
        if not value.strip():
            return _Bad("the prompt is empty")
        text = value + keys.suffix
        return ({"role": "user", "content": text},) if keys.chat else text
    if not isinstance(value, list):
        return _Bad(f"the prompt is {_kind(value)}, neither text nor a list of messages")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            return _Bad(f"message {number} of the prompt is no {{role, content}} of texts")
        messages.append({"role": message["role"], "content": message["content"]})
    if not messages or not messages[-1]["content"].strip():
        return _Bad("the prompt is empty")
    if messages[-1]["role"] == "assistant":
        return _Bad("the prompt ends with a message of the assistant")
    messages[-1]["content"] += keys.suffix
    return tuple(messages)


def _bad_answer(value: Any, key: str) -> str:
    if value is None:
        return f"no answer in {key!r}"
    if isinstance(value, bool) or not isinstance(value, str | int | float | list | Mapping):
        return f"the answer is {_kind(value)}, neither text nor a number nor a list nor a table"
    if isinstance(value, float) and not math.isfinite(value):
        return f"the answer is {value}, which is no number"
    if isinstance(value, str | list | Mapping) and not (
        value.strip() if isinstance(value, str) else value
    ):
        return "the answer is empty"
    return ""


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a whole number", float: "a number", dict: "a table"}
    return names.get(type(value), f"of type {type(value).__name__}")
