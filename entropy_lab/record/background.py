"""One daemon thread that runs write jobs in order, and what it owes its caller."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from entropy_lab.errors import RunError


class BackgroundWriter:
    """Runs jobs one after another beside the training; the first failure stops it for good.

    Nothing here waits without a bound on what it waits for: after a failure every wait ends.
    """

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._submitted = 0
        self._done = 0
        self._busy = False
        self._stopping = False
        self._error: RunError | None = None
        self._thread = threading.Thread(target=self._run, name="run-writer", daemon=True)
        self._thread.start()

    @property
    def error(self) -> RunError | None:
        return self._error

    @property
    def done(self) -> int:
        """How many jobs are finished, in the order of submission."""
        return self._done

    def submit(self, job: Callable[[], None]) -> int:
        """Queue a job; returns its number, from 1. The caller bounds the queue by wait()."""
        with self._changed:
            self._jobs.append(job)
            self._submitted += 1
            self._changed.notify_all()
            return self._submitted

    def wait(self, number: int) -> None:
        """Block until that many jobs are finished; raises the RunError that stopped the thread."""
        self._wait(lambda: self._done >= number)

    def wait_all(self) -> None:
        """Block until no job is left; raises the RunError that stopped the thread."""
        self._wait(lambda: not self._jobs and not self._busy)

    def _wait(self, fulfilled: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: fulfilled() or self._error is not None)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the thread after the jobs it has; returns at once if it failed."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stopping)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._busy = True
            error = _attempt(job)
            with self._changed:
                self._busy = False
                if error is not None:
                    self._error = error
                    self._jobs.clear()
                else:
                    self._done += 1
                self._changed.notify_all()
            if error is not None:
                return


def _attempt(job: Callable[[], None]) -> RunError | None:
    try:
        job()
    except RunError as error:
        return error
    except BaseException as error:  # a thread's boundary: the caller must hear of anything
        text = f"the log writer failed with {type(error).__name__}: {error}"
        wrapped = RunError(text)
        wrapped.__cause__ = error
        return wrapped
    return None
