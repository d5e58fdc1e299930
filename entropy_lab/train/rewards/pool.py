"""Processes that compare answers, each with a hard time limit; killed and restarted where needed.

Not multiprocessing: its spawned children import the caller's main module again, which a notebook
does not have and a script without a guard does not survive, and forking after torch has started
threads is unsafe. These are programs of their own that read and write JSON lines.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from entropy_lab.errors import RunError

Pair = tuple[str, str]
_START = 120.0  # seconds that a process may take to start; it takes about one


@dataclass
class _Worker:
    """A process, the pair that it has and when it must be done; None: it is starting or idle."""

    process: subprocess.Popen[bytes]
    deadline: float
    ready: bool = False
    pair: Pair | None = None
    unread: bytes = b""


@dataclass
class Pool:
    """Compares answers in up to `workers` processes; a pair never takes more than `timeout` s.

    Processes start when first needed (about 1 s each, most of it imports) and end with `close`,
    with the pool, or with this process. One that runs out of time is killed, and another one
    starts in its place while the rest go on. Verdicts do not depend on the number of processes.
    """

    workers: int = 2
    timeout: float = 3.0
    _team: list[_Worker] = field(default_factory=list)
    _owner: int = field(default_factory=os.getpid)

    def compare(self, pairs: Sequence[Pair]) -> list[tuple[bool, str]]:
        """(same answer, note) of each (gold, given); equal pairs are compared once.

        note: "", "timeout", "out of memory", "worker died" or the name of an error, in which
        cases the texts were compared, or, where the process was lost, the verdict is False.
        Raises RunError where no process can be started.
        """
        if self._owner != os.getpid():  # after a fork the parent's processes are not ours
            self._team, self._owner = [], os.getpid()
        known: dict[Pair, tuple[bool, str]] = {}
        left = deque(dict.fromkeys(pairs))
        while left or any(w.pair for w in self._team):
            self._staff(len(left))
            for worker in list(self._team):
                if left and worker.ready and worker.pair is None and self._give(worker, left[0]):
                    left.popleft()
            self._wait(known)
        return [known[pair] for pair in pairs]

    def close(self) -> None:
        """End the processes."""
        while self._team and self._owner == os.getpid():
            self._end(self._team[0])

    def __del__(self) -> None:
        self.close()

    def _staff(self, waiting: int) -> None:
        idle = sum(w.pair is None for w in self._team)
        while len(self._team) < self.workers and idle < waiting:
            self._team.append(_started())
            idle += 1

    def _give(self, worker: _Worker, pair: Pair) -> bool:
        """Whether it took the pair; one that died while idle is ended."""
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps([*pair, self.timeout]).encode() + b"\n")
            worker.process.stdin.flush()
        except OSError:
            self._end(worker)
            return False
        worker.pair, worker.deadline = pair, time.monotonic() + self.timeout
        return True

    def _wait(self, known: dict[Pair, tuple[bool, str]]) -> None:
        """Until something is heard or a deadline passes; then take it in."""
        busy = [w for w in self._team if w.pair or not w.ready]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            patience = min(w.deadline for w in busy) - time.monotonic()
            heard = [key.data for key, _ in selector.select(max(0.0, patience))]
        for worker in heard:
            self._hear(worker, known)
        for worker in busy:
            if worker not in heard and time.monotonic() >= worker.deadline:
                self._lose(worker, "timeout", known)

    def _hear(self, worker: _Worker, known: dict[Pair, tuple[bool, str]]) -> None:
        assert worker.process.stdout is not None
        chunk = os.read(worker.process.stdout.fileno(), 65536)
        worker.unread += chunk
        if not chunk:
            self._lose(worker, "worker died", known)
        elif worker.unread.endswith(b"\n"):
            result, note = json.loads(worker.unread)
            worker.unread = b""
            if worker.pair:
                known[worker.pair], worker.pair = (result, note), None
            elif result:
                worker.ready = True
            else:
                self._end(worker)
                raise RunError(
                    f"answers cannot be compared: {note}; install entropy-lab[train], which "
                    "brings math-verify"
                )

    def _lose(self, worker: _Worker, note: str, known: dict[Pair, tuple[bool, str]]) -> None:
        self._end(worker)
        if worker.pair:
            known[worker.pair] = (False, note)
            self._team.append(_started())  # it will be ready by the time it is needed
        elif not worker.ready:
            raise RunError(
                f"a process that compares answers did not start ({note}, exit code "
                f"{worker.process.returncode}): try `{sys.executable} -m {_PROGRAM}`"
            )

    def _end(self, worker: _Worker) -> None:
        self._team.remove(worker)
        worker.process.kill()
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not yet written has no reader any more
                    pass


_PROGRAM = "entropy_lab.train.rewards.worker"


def _started() -> _Worker:
    """A process that runs the package that this one runs, whatever is installed elsewhere."""
    home = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-m", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    return _Worker(process, time.monotonic() + _START)
