"""metrics.jsonl, the commit log: one line per finished optimizer step."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from entropy_lab.errors import RunError
from entropy_lab.record.parts import write_all, write_error, write_file

NAME = "metrics.jsonl"
_BLOCK = 1 << 16


class MetricsLog(NamedTuple):
    """What could be read: good lines, whether the last is torn, numbers of other bad lines."""

    lines: list[dict[str, Any]]
    torn: bool
    bad: list[int]

    @property
    def last_step(self) -> int | None:
        return int(self.lines[-1]["step"]) if self.lines else None


def plain(value: Any) -> Any:
    """A value that JSON can hold: numpy scalars become Python's, NaN and infinities null."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def read_metrics(run_dir: Path) -> MetricsLog:
    """The finished steps of a run, which may still be running or have been killed."""
    path = run_dir / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return MetricsLog([], False, [])
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    *whole, rest = data.split(b"\n")
    lines, bad = [], []
    for number, raw in enumerate(whole, start=1):
        line = _parse(raw)
        if line is None:
            bad.append(number)
        else:
            lines.append(line)
    return MetricsLog(lines, bool(rest), bad)


def last_metrics(run_dir: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` good lines, without reading what comes before them; [] without a log."""
    path, tail = run_dir / NAME, b""
    try:
        with open(path, "rb") as file:
            at = file.seek(0, os.SEEK_END)
            while at and tail.count(b"\n") <= count:
                size = min(_BLOCK, at)
                at = file.seek(at - size)
                tail = file.read(size) + tail
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    whole = tail.split(b"\n")[:-1]
    lines = [_parse(raw) for raw in (whole if not at else whole[1:])]
    return [line for line in lines if line is not None][-count:]


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    usable = isinstance(line, dict) and isinstance(line.get("step"), int)
    return line if usable else None


def cut_metrics(run_dir: Path, step: int) -> None:
    """Drop the lines after `step`, and a torn last line; the rest stays byte for byte."""
    path = run_dir / NAME
    if not path.exists():
        return
    kept = []
    for raw in path.read_bytes().split(b"\n")[:-1]:
        line = _parse(raw)
        if line is not None and line["step"] <= step:
            kept.append(raw + b"\n")
    write_file(path, b"".join(kept))


class MetricsWriter:
    """Appends lines; a line that could not be written whole is taken back."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / NAME
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise write_error(error, self._path) from error

    def append(self, row: dict[str, Any]) -> None:
        """Hand one line to the system; it outlives this process, and after sync() the machine."""
        data = (json.dumps(plain(row), allow_nan=False) + "\n").encode()
        size = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, data)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise write_error(error, self._path) from error

    def sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(error, self._path) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
