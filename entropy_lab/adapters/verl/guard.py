"""What goes wrong with the measuring is told and written down, and training goes on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from entropy_lab.errors import RunError
from entropy_lab.record.events import FOLDER, EventLog

logger = logging.getLogger("entropy_lab.adapters.verl")


class Guard:
    """Runs what the probe does. An error becomes a warning, once for each kind, and a line of
    events/ (EventLog); strict: it is raised as it is. Unlike the probe's own Guard it hands back
    the error, because a run directory that cannot be written ends the recording."""

    def __init__(self, run_dir: Path | str, rank: int, strict: bool) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self._log, self._folder = EventLog(run_dir, rank), Path(run_dir) / FOLDER

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
                step, kind, name, reason, self._folder, exc_info=trace,
            )  # fmt: skip
        with suppress(RunError, OSError):  # the disk may be what is wrong; the warning was given
            self._log.append(step, kind, name, reason)
