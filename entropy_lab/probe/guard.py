"""The boundary between a probe and the training it watches: what fails inside stays inside."""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from entropy_lab.errors import RunError
from entropy_lab.probe.memory import is_out_of_memory, release_memory
from entropy_lab.record.events import EventLog

logger = logging.getLogger("entropy_lab.probe")

OUT_OF_MEMORY = "out_of_memory"


class Guard:
    """Runs what a probe does, and takes note of what fails: in events/, and once per kind and
    error through `logging` (logger "entropy_lab.probe").

    strict: an error is raised as it is. Otherwise it becomes an event and training goes on;
    KeyboardInterrupt and its like always pass.
    """

    def __init__(self, run_dir: Path | str, rank: int, strict: bool) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self._log = EventLog(run_dir, rank)
        self._where = f"{run_dir}" + (f", rank {rank}" if rank else "")
        self._told: set[tuple[str, str]] = set()

    def attempt(self, kind: str, step: int, action: Callable[[], object]) -> str:
        """Run `action`; "" where it worked, else the kind of the event: `kind`, or out_of_memory,
        whose tensors are given back."""
        if self.strict:
            action()
            return ""
        try:
            action()
            return ""
        except Exception as error:
            kind = OUT_OF_MEMORY if is_out_of_memory(error) else kind
            trace = "".join(traceback.format_tb(error.__traceback__)[-3:])
            self.note(kind, step, str(error), type(error).__name__, trace)
        release_memory()  # after the except clause, whose frames hold tensors
        return kind

    def note(self, kind: str, step: int, reason: str, error: str = "", trace: str = "") -> None:
        """An event: something that is not as it should be, though nothing need have been raised."""
        self.counts[kind] += 1
        reason = " ".join(reason.split())[:500] or error
        if (kind, error) not in self._told:
            self._told.add((kind, error))
            text = f"{error}: {reason}" if error else reason
            logger.warning(
                "%s, step %d, %s: %s; training goes on, events like this one are counted%s",
                self._where, step, kind, text, f"\n{trace.rstrip()}" if trace else "",
            )  # fmt: skip
        with suppress(RunError, OSError):  # it waits for the next event, or for close
            self._log.append(step, kind, error, reason)

    def close(self) -> None:
        """Write the events that are not written yet, where the disk takes them."""
        with suppress(RunError, OSError):
            self._log.flush()
