"""Ctrl-C during training: finish the rollout at hand, save, stop; a second one stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def stop_request(asked: Callable[[], None] | None = None) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, the second into KeyboardInterrupt.

    asked: called with the first, instead of the line that says what happens now.

    Outside the main thread signals cannot be taken over; the request then never becomes true.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, frame: object) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        if asked is not None:
            asked()
            return
        print("stopping after this rollout; again to stop at once", file=sys.stderr, flush=True)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
