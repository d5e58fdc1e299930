"""vocab.json: the text of every token id, so that a log can be read without its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from entropy_lab.errors import RunError
from entropy_lab.record.parts import write_file

NAME = "vocab.json"


def write_vocab(run_dir: Path | str, texts: Sequence[str | None]) -> None:
    """Write RUN/vocab.json, whole: texts[token_id] is the token's text, None where unknown.

    Raises ValueError for anything but texts and None, RunError where the disk refuses.
    """
    data = list(texts)
    _check(data, ValueError, "the texts of a vocabulary are a list of str or None by token id")
    # ASCII only: a lone surrogate, which no UTF-8 file can hold, survives as \udXXX.
    write_file(Path(run_dir) / NAME, json.dumps(data, separators=(",", ":")).encode("ascii"))


def read_vocab(run_dir: Path | str) -> list[str | None]:
    """The texts by token id; [] where the run has no vocab.json, RunError where it is damaged."""
    path = Path(run_dir) / NAME
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): remove it, texts are optional") from error
    _check(data, RunError, f"{path} is not a list of token texts by id: remove it or write it anew")
    return data


def _check(data: object, kind: type[Exception], text: str) -> None:
    if not isinstance(data, list) or not all(t is None or isinstance(t, str) for t in data):
        raise kind(text)
