"""Errors that a user can act on; the command line prints their text without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EntropyLabError(Exception):
    """Base of every error whose text says what was wrong, the value seen and what to do."""


class ConfigError(EntropyLabError):
    """A setting or a command-line argument is wrong; the command line exits with 2."""


class RunError(EntropyLabError):
    """A run directory cannot be read or written as asked; the command line exits with 1."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """The end of an error about an unknown name: "did you mean ...?" and what is valid."""
    names = list(valid)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}Valid: {', '.join(names)}"
