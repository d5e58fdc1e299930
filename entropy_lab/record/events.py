"""events/rank=*.jsonl: what went wrong with the measuring of a run, one line each time.

A line is {step, kind, error, reason, time}; the folder is made with the first one. Appending a
short line needs no new file, so it still works where a disk has no room for a part.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from entropy_lab.record.parts import make_folder, write_all, write_error

FOLDER = "events"


class EventLog:
    """Appends the events of one rank; what cannot be written now is tried again with the next."""

    def __init__(self, run_dir: Path | str, rank: int = 0) -> None:
        self._path = Path(run_dir) / FOLDER / f"rank={rank:04d}.jsonl"
        self._waiting: list[bytes] = []

    def append(self, step: int, kind: str, error: str, reason: str) -> None:
        """Raises RunError where the line, which is kept, cannot be written."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"step": step, "kind": kind, "error": error, "reason": reason, "time": now}
        self._waiting.append((json.dumps(line) + "\n").encode())
        self.flush()

    def flush(self) -> None:
        """Write what is left; RunError where that is not possible."""
        if not self._waiting:
            return
        make_folder(self._path.parent)
        try:
            with open(self._path, "ab", buffering=0) as file:
                while self._waiting:
                    size = file.tell()
                    try:
                        write_all(file.fileno(), self._waiting[0])
                    except OSError:
                        file.truncate(size)
                        raise
                    self._waiting.pop(0)
        except OSError as error:
            raise write_error(error, self._path) from error


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All events of a run by step, with the `rank` of each; a line that is no JSON is left out."""
    found = []
    for path in sorted((run_dir / FOLDER).glob("rank=*.jsonl")):
        rank = int(path.stem.removeprefix("rank="))
        for raw in path.read_bytes().split(b"\n"):
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append({"rank": rank, **line})
    return sorted(found, key=lambda line: line["step"])
