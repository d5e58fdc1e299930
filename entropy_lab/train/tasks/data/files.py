"""The rows of one data file, by its ending: Parquet, Arrow, JSON lines, a JSON list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.errors import ConfigError

# (number, row or why there is none); the first row is 1, and in JSON lines the first line.
Rows = Iterator[tuple[int, dict[str, Any] | str]]


def read_rows(path: Path) -> Rows:
    """All rows of a file, with those that are no record said why; ConfigError if unreadable."""
    try:
        yield from READERS[path.suffix](path)
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"cannot read the data file {path}: {reason}") from None


def _parquet(path: Path) -> Rows:
    with pq.ParquetFile(path) as file:
        yield from _numbered(file.iter_batches())


def _arrow(path: Path) -> Rows:
    """`datasets` writes streams; other tools write Arrow files, which have a footer."""
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_file(source)
            yield from _numbered(file.get_batch(i) for i in range(file.num_record_batches))
            return
        yield from _numbered(reader)


def _numbered(batches: Any) -> Rows:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _lines(path: Path) -> Rows:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: bytes) -> dict[str, Any] | str:
    try:
        return _record(json.loads(line))
    except UnicodeDecodeError:
        return "is not UTF-8"
    except (ValueError, RecursionError):
        return "is not JSON"


def _record(value: Any) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else "is no JSON object"


def _json(path: Path) -> Rows:
    """A list of records; a file that starts otherwise has one record on each line."""
    with open(path, "rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _lines(path)
        return
    for number, value in enumerate(json.loads(path.read_text(encoding="utf-8-sig")), 1):
        yield number, _record(value)


READERS: dict[str, Callable[[Path], Rows]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
}
