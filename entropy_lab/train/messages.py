"""One-line texts for settings that pydantic refuses."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
}


def explain(error: ValidationError) -> str:
    """'key must be ..., got ...' for the first thing that was wrong."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    expected = _EXPECTED.get(first["type"])
    if first["type"] == "literal_error":
        expected = str(first.get("ctx", {})["expected"]).replace("'", '"')
    if expected is None:
        expected = first["msg"].removeprefix("Input should be ")
    return f"{key} must be {expected}, got {shown(first['input'])}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """'did you mean ...?' or, where nothing is close, all that is valid."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"valid: {', '.join(names)}"


def shown(value: Any) -> str:
    """A value with the name of its kind, as a user wrote it."""
    kinds = {str: "a string", bool: "a boolean", int: "an integer", float: "a float"}
    kind = kinds.get(type(value))
    text = json.dumps(value, default=str)
    return f"{text} ({kind})" if kind else text
