"""One writer at a time: a lock on a run directory that ends with the process that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from entropy_lab.errors import RunError
from entropy_lab.record.parts import write_error

NAME = ".lock"


@contextmanager
def run_lock(run_dir: Path | str) -> Iterator[None]:
    """Hold the run for writing. Raises RunError where another process holds it.

    The lock belongs to the open file, so a killed process leaves none behind. Systems without
    flock go without.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = Path(run_dir) / NAME
    try:
        handle = open(path, "w")
    except OSError as error:
        raise write_error(error, path) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{run_dir} is being written by another process: wait for it, or stop it first"
            ) from None
        yield
