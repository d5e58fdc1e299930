"""What goes wrong with the measuring is told and written down, and training goes on."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

logger = logging.getLogger("entropy_lab.adapters.verl")


class Guard:
    """Runs what the probe does. An error becomes a warning, once for each kind, and a line of
    events/rank=RRRR.jsonl: {step, kind, error, reason, time}; strict: it is raised as it is."""

    def __init__(self, run_dir: Path | str, rank: int, strict: bool) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self._path = Path(run_dir) / "events" / f"rank={rank:04d}.jsonl"

    def attempt(self, kind: str, step: int, action: Callable[[], object]) -> Exception | None:
        """Run `action`; the error that it raised, without its frames, or None."""
        if self.strict:
            action()
            return None
        found = None
        try:
            action()
        except Exception as error:
            self.note(kind, step, error)
            found = error.with_traceback(None)  # whose frames hold tensors
        if found is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found

    def note(self, kind: str, step: int, error: Exception | str) -> None:
        """An event; raises nothing."""
        if isinstance(error, torch.OutOfMemoryError):
            kind = "out_of_memory"
        self.counts[kind] += 1
        reason = " ".join(str(error).split())[:500]
        name = type(error).__name__ if isinstance(error, Exception) else ""
        if self.counts[kind] == 1:
            trace = error if isinstance(error, Exception) else None
            logger.warning(
                "entropy-lab, step %d, %s: %s %s; training goes on, further ones are counted in %s",
                step, kind, name, reason, self._path, exc_info=trace,
            )  # fmt: skip
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"step": step, "kind": kind, "error": name, "reason": reason, "time": now}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError:  # the disk may be what is wrong; the warning was given
            return
