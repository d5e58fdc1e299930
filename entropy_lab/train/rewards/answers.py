r"""Which part of a response is its answer: \boxed{...}, "Answer: ...", or "#### ..."."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ANSWER = re.compile(r"answer[*_ ]{0,4}:", re.IGNORECASE)
# What may stand between the start of a line and "Answer:", and before a number after "####".
_BEFORE = re.compile(r"[\s*_#>\-]{0,12}(?:the )?(?:final )?", re.IGNORECASE)
_NUMBER_LINE = re.compile(r"####[ \t]{0,8}([+-]?[ \t]?\\?\$?[\d.,/]{1,64}%?)[ \t.]{0,8}$")
_FENCES = {"\\[": "\\]", "$$": "$$"}
_SPANS = re.compile(r"\$([^$\n]+)\$|\\\(([^\n]+?)\\\)")


def answer_of(response: str) -> str | None:
    r"""The answer that a response states, as written; None where it states none.

    The last \boxed{...} (or \fbox{...}) with balanced braces; without any, the rest of the last
    line that begins with "Answer:" (markup and "The final" before it are let pass; the next line
    where nothing follows); then the last line "#### NUMBER" (the layout of GSM8K); then what
    follows the last "answer:" anywhere. Only the last one counts, so listing candidates gains
    nothing, and a box that is never closed, or is empty, is no answer. What stands in a thinking
    block (up to the last </think>, or after a <think> without an end) is not read. The rule of
    verl's math_dapo reads the same forms. Time is linear in the length of the response.
    """
    text = _after_thinking(response)
    boxes = [m.end() for m in _BOX.finditer(text)]
    if boxes:
        return (_braced(text, boxes[-1]) or "").strip() or None
    found = _answer_line(text)
    if found is None:
        found = _number_line(text)
    if found is None:
        ends = [m.end() for m in _ANSWER.finditer(text)]
        found = _statement(text, ends[-1]) if ends else None
    return found or None


def _after_thinking(response: str) -> str:
    text = (
        response[response.rfind("</think>") + len("</think>") :]
        if ("</think>" in response)
        else response
    )
    return text.partition("<think>")[0]


def _braced(text: str, start: int) -> str | None:
    """What stands in the braces that open at `start`; \\boxed 5 gives 5."""
    while start < len(text) and text[start] in " \t\n":
        start += 1
    if not text.startswith("{", start):
        return re.split(r"[\s$]", text[start : start + 64], maxsplit=1)[0].rstrip(".,")
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start + 1 : match.start()]
    return None


def _line_starts(text: str, marks: Iterator[re.Match[str]]) -> Iterator[re.Match[str]]:
    """The marks before which a line holds nothing but markup."""
    for mark in marks:
        line = text.rfind("\n", max(0, mark.start() - 32), mark.start()) + 1
        if line == 0 and mark.start() > 32:
            continue
        if _BEFORE.fullmatch(text, line, mark.start()):
            yield mark


def _answer_line(text: str) -> str | None:
    marks = [*_line_starts(text, _ANSWER.finditer(text))]
    return _statement(text, marks[-1].end()) if marks else None


def _number_line(text: str) -> str | None:
    start = text.rfind("####")
    while start >= 0:
        end = text.find("\n", start)
        match = _NUMBER_LINE.match(text[start : len(text) if end < 0 else end])
        if match and text[max(0, start - 1) : start] in ("", "\n"):
            return match.group(1)
        start = text.rfind("####", 0, start)
    return None


def _statement(text: str, start: int) -> str:
    """The line after "Answer:", or the next one with text; of a sentence its only formula."""
    rest = text[start:].lstrip(" \t\r\n*_")
    for opening, closing in _FENCES.items():
        if rest.startswith(opening) and closing in rest[2:]:
            return rest[2 : rest.index(closing, 2)].strip()
    line = rest.partition("\n")[0].strip().removesuffix("**").strip()
    spans = [a or b for a, b in _SPANS.findall(line)]
    if len(spans) == 1 and re.search("[A-Za-z]", _SPANS.sub("", line)):
        return spans[0].strip()
    return line
