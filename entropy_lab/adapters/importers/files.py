"""Reading foreign files: JSON lines, torch dumps, and which file is which step."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from entropy_lab.errors import RunError


def numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    """(number, path) of the files below `folder` whose relative path matches, by number.

    The first group of the regular expression is the number. RunError where nothing matches.
    """
    if not folder.exists():
        raise RunError(f"{folder} does not exist: give the folder of the log to import")
    found = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        name = path.relative_to(folder).as_posix() if folder.is_dir() else path.name
        match = re.fullmatch(pattern, name)
        if match and path.is_file():
            found.append((int(match.group(1)), path))
    if not found:
        raise RunError(f"{folder} holds no file that matches {pattern!r}: is it another format?")
    return sorted(found)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a torn last line, left by a kill, is skipped.

    RunError naming file and line for anything else that is no JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    row = json.loads(raw)
                except ValueError as error:
                    if not raw.endswith(b"\n"):
                        return
                    raise RunError(f"{path}, line {number} is no JSON ({error})") from None
                if not isinstance(row, dict):
                    raise RunError(f"{path}, line {number} is no JSON object")
                yield row
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def torch_dump(path: Path) -> Any:
    """What torch.save wrote, tensors and plain containers only: no code of the file is run."""
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise RunError(
            f"cannot read {path} as tensors and plain containers "
            f"({str(error).splitlines()[0]}): other objects in it could run code, so save "
            "tensors, lists, dicts and numbers only"
        ) from error


def need(row: dict[str, Any], name: str, where: Path) -> Any:
    """A field of a row; RunError naming what the row has instead."""
    if row.get(name) is None:
        raise RunError(
            f"{where}: a row lacks {name!r}; it has {', '.join(map(str, row)) or 'nothing'}"
        )
    return row[name]


def floats(values: Any) -> np.ndarray:
    """(n,) float32 of a list that may hold null (NaN) or of a tensor."""
    if hasattr(values, "numpy"):
        return values.float().numpy().reshape(-1)
    return np.array([math.nan if v is None else v for v in values], np.float32)


def integers(values: Any) -> np.ndarray:
    """(n,) int64 of a list or tensor."""
    return np.asarray(values.numpy() if hasattr(values, "numpy") else values, np.int64).reshape(-1)


def number(value: Any) -> float | None:
    """A float of a number, one-element list or tensor; None stays None."""
    one: Any = value[0] if isinstance(value, list) and len(value) == 1 else value
    return None if one is None else float(one)
