"""A rank that was killed, hangs or has failed ends all others, which say which one and why.

A process that waits for another in a collective cannot see that it waits in vain. So a thread of
each rank tells a store how far its training has come, reads how far the others are, and ends its
process where one of them is lost. Files of a run are whole or absent, so that this is no worse for
the run directory than being killed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

PERIOD = 0.5  # seconds between two looks
SILENCE = 12.0  # seconds without a sign of life after which a rank counts as dead
LEFT = "its end"  # what a rank does that has finished
STOPPED = "the user has stopped it"
GRACE = 20.0  # seconds from Ctrl-C to the end: torchrun kills what is left after 30


class Beat(NamedTuple):
    """What a rank says of itself: count of looks, how far its training is and what it does, and
    whether it waits for the others in a collective."""

    count: int
    ticks: int
    waits: bool
    doing: str
    host: str
    pid: int


@dataclass
class Seen:
    """The last beat of a rank, and when it was first seen so, on this machine's clock."""

    beat: Beat
    beating: float
    moving: float

    def update(self, beat: Beat, now: float) -> None:
        if beat.count != self.beat.count:
            self.beating = now
        if (beat.ticks, beat.waits) != (self.beat.ticks, self.beat.waits):
            self.moving = now
        self.beat = beat


@dataclass
class Watch:
    """The thread. store: opens a connection of its own; limit: seconds in which a rank has to get
    on; ended(status, first): what is left to do for the run, by the first of the ranks that remain.
    """

    rank: int
    size: int
    store: Callable[[], Any]
    limit: float
    ended: Callable[[str, bool], None]
    _ticks: int = 0
    _waits: bool = False
    _doing: str = "the start"
    _failure: str = ""
    _deadline: float = float("inf")
    _posted: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        connected = self.store()
        self._say(connected, 0)
        self._thread = threading.Thread(target=self._run, args=(connected,), daemon=True)
        self._thread.start()

    def tick(self, doing: str = "") -> None:
        """The training has come further."""
        self._ticks += 1
        self._doing = doing or self._doing

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, this rank is held up by others alone."""
        self._ticks += 1
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
            self._ticks += 1

    def fail(self, reason: str) -> None:
        """Tell the others why this rank goes no further; returns once they can know."""
        if self._thread is not None and self._thread.is_alive():
            self._failure = reason
            self._posted.wait(4 * PERIOD)

    def stop_soon(self) -> None:
        """The user has asked to stop: what is not over after GRACE seconds ends as it is."""
        self._deadline = min(self._deadline, time.monotonic() + GRACE)

    def wait_for_verdict(self) -> None:
        """Give the thread time to find out who is lost; it then ends the process."""
        if self._thread is not None:
            self._thread.join(SILENCE + 4 * PERIOD)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * SILENCE)

    def _say(self, store: Any, count: int) -> None:
        beat = Beat(count, self._ticks, self._waits, self._doing, socket.gethostname(), os.getpid())
        store.set(f"beat/{self.rank}", json.dumps(beat))

    def _run(self, store: Any) -> None:
        seen: dict[int, Seen] = {}
        count = 0
        while not self._stop.wait(PERIOD):
            count += 1
            try:
                self._say(store, count)
                if self._failure and not self._posted.is_set():
                    store.set(f"fail/{self.rank}", self._failure)
                    self._posted.set()
                found = self._look(store, seen)
            except Exception:  # the store's errors have no common class
                if self._stop.wait(2.0):
                    return
                found = (0, "its store does not answer: rank 0 or torchrun has ended")
            if found is not None and not self._failure:
                with suppress(Exception):  # that the others give the same reason
                    store.set(f"fail/{found[0]}", found[1])
                self._end(*found)
            if time.monotonic() > self._deadline:
                self._interrupt(store)
        self._doing = LEFT
        with suppress(Exception):
            self._say(store, count + 1)

    def _look(self, store: Any, seen: dict[int, Seen]) -> tuple[int, str] | None:
        """(rank, what is wrong with it), or None."""
        now = time.monotonic()
        for rank in range(self.size):
            if store.check([f"fail/{rank}"]):
                return rank, store.get(f"fail/{rank}").decode()
            if not store.check([f"beat/{rank}"]):
                continue  # not there yet
            beat = Beat(*json.loads(store.get(f"beat/{rank}")))
            seen.setdefault(rank, Seen(beat, now, now)).update(beat, now)
        for rank, one in seen.items():
            if one.beat.doing == LEFT:
                continue
            if one.beat.host == socket.gethostname() and not _lives(one.beat.pid):
                return rank, f"process {one.beat.pid} was killed or has crashed"
            if now - one.beating > SILENCE:
                quiet = now - one.beating
                return rank, f"process {one.beat.pid} has shown no sign of life for {quiet:.0f} s"
        return self._stuck(seen, now)

    def _stuck(self, seen: dict[int, Seen], now: float) -> tuple[int, str] | None:
        """The rank that holds the others up, once none has moved for `limit` seconds."""
        still = min((now - one.moving for one in seen.values()), default=0.0)
        if len(seen) < self.size or still <= self.limit:
            return None
        behind = min(seen, key=lambda rank: (seen[rank].beat.waits, seen[rank].beat.ticks))
        return behind, (
            f"it hangs in {seen[behind].beat.doing}: no progress for {still:.0f} s "
            f"(train.hang_timeout = {self.limit:g})"
        )

    def _end(self, culprit: int, reason: str) -> None:
        who = f"rank {culprit}" if culprit != self.rank else f"rank {culprit} (this one)"
        print(f"error: rank {self.rank} stops, because of {who}: {reason}", file=sys.stderr)
        with suppress(Exception):
            status = "interrupted" if reason == STOPPED else "failed"
            self.ended(status, self.rank == (1 if culprit == 0 else 0))
        _leave(130 if reason == STOPPED else 1)

    def _interrupt(self, store: Any) -> None:
        if self.rank == 0:
            print(
                f"stopped {GRACE:.0f} s after Ctrl-C, before the rollout was over: it is not "
                "saved, and is done again with --resume",
                file=sys.stderr,
            )
        with suppress(Exception):
            self.ended("interrupted", self.rank == 0)
        with suppress(Exception):
            store.set(f"fail/{self.rank}", STOPPED)
        _leave(130)


def _lives(pid: int) -> bool:
    """Whether a process of this machine is there and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] not in "ZX"


def _leave(code: int) -> None:
    """End the process, whatever its main thread waits for."""
    sys.stderr.flush()
    os._exit(code)


def open_store(seconds: float = 10.0) -> Any:
    """A connection to the store through which the ranks have met."""
    dist: Any = import_module("torch.distributed")  # whose stubs do not name its stores

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=seconds))
    return dist.PrefixStore(f"entropy-lab/{attempt}", store)
