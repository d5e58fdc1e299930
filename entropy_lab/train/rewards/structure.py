r"""Answers with parts: (1, 2], \{1, 2\}, 3 \pm \sqrt{2}, x = 5, (0, 1) \cup (2, 3)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\\[{}]|\\[A-Za-z]+|\\.|[()\[\]{},;|=<>]|.", re.DOTALL)
_OPEN = {"(", "[", "{", "\\{"}
_CLOSE = {")", "]", "}", "\\}"}
_NAME = re.compile(r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?'?(?:\([\w, ]*\))?|\\text ?\{[^{}]*\})")
_MEMBER = re.compile(rf"{_NAME.pattern} ?\\in(?![A-Za-z]) ?")


@dataclass(frozen=True)
class Sequence:
    """Elements between brackets; opening "" for a bare list a, b; "\\{" for a set."""

    opening: str
    closing: str
    elements: tuple[str, ...]

    @property
    def is_ordered(self) -> bool:
        """Tuples, vectors and intervals; sets and bare lists are not."""
        return self.opening in ("(", "[")


def sequence(text: str) -> Sequence | None:
    r"""The parts of a tuple, interval, set or list in `notation`; None for a single answer.

    \pm stands for two elements where it is the only one of its element.
    """
    text = _MEMBER.sub("", text, count=1) if _MEMBER.match(text) else text
    inner, opening, closing = text, "", ""
    if wrapped := _wrapped(text):
        opening, inner, closing = wrapped
        if opening == "{":  # braces that only group
            return sequence(inner)
    parts = [part for piece in _split(inner, {",", ";"}) for part in _both_signs(piece.strip())]
    if opening == "(" and len(parts) == 1 or opening == "[" and len(parts) == 1:
        return None
    if not opening and len(parts) == 1 or not all(parts):
        return None
    return Sequence(opening, closing, tuple(parts))


def union(text: str) -> tuple[str, ...]:
    r"""The pieces between \cup at the top level; one piece where there is none."""
    text = _MEMBER.sub("", text, count=1) if _MEMBER.match(text) else text
    return tuple(part.strip() for part in _split(text, {"\\cup"}))


def equation(text: str) -> tuple[str, str] | None:
    """(name, value) of x = value, f(x) = ... = value; name "" for a side that is no name.

    None where there is no equals sign outside brackets.
    """
    sides = [side.strip() for side in _split(text, {"="})]
    if len(sides) == 1 or not all(sides):
        return None
    name = sides[0].replace(" ", "")
    return (name if _NAME.fullmatch(name) else "", sides[-1])


def _wrapped(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) where one pair of brackets spans the whole text."""
    tokens = _TOKEN.findall(text)
    if len(tokens) < 2 or tokens[0] not in _OPEN or tokens[-1] not in _CLOSE:
        return None
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and i < len(tokens) - 1:
            return None
    return (tokens[0], "".join(tokens[1:-1]).strip(), tokens[-1]) if depth == 0 else None


def _split(text: str, at: set[str]) -> list[str]:
    """Cut at these tokens outside brackets; a \\begin...\\end block counts as brackets."""
    pieces, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in _OPEN or token == "\\begin") - (token in _CLOSE or token == "\\end")
        if token in at and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += token
    return pieces


def _both_signs(text: str) -> list[str]:
    if len(re.findall(r"\\(?:pm|mp)(?![A-Za-z])", text)) != 1:
        return [text]
    head, sign, tail = re.split(r"\\(pm|mp)(?![A-Za-z])", text)
    return [f"{head}{sign}{tail}".strip() for sign in ("+-" if sign == "pm" else "-+")]
