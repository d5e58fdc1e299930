"""Running untrusted Python in jailed processes, through a fork server (`jail.zygote`).

What isolates a program, and what remains possible: `isolation`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.isolation import (
    Isolation,
    server_command,
    server_environment,
    server_settings,
)

SILENCE = 60.0  # seconds beyond a program's wall clock until its server counts as dead


def memory_file(data: bytes = b"") -> int:
    """File descriptor of an unnamed file with these contents, at its beginning."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("entropy-lab")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@dataclass(frozen=True)
class Ended:
    """How a program ended: wait status, why it was killed ("wall", "asked" or ""), what it used."""

    status: int
    why: str
    cpu: float
    rss_mb: float
    stdout: bytes
    stderr: str

    @property
    def signal(self) -> int:
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    @property
    def exit_code(self) -> int:
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else -1


class Sandbox:
    """One fork server and the programs that it runs; for one thread of ours.

    memory_mb: address space of a program; file_mb: its output and any file that it writes.
    """

    def __init__(self, layers: Isolation, memory_mb: int = 1024, file_mb: float = 4.0) -> None:
        self.layers, self.memory_mb, self.file_mb = layers, memory_mb, file_mb
        self._next = 0
        self._ended: dict[int, dict[str, Any]] = {}  # an empty one went with its server
        self._files: dict[int, tuple[int, int, float]] = {}  # stdout, stderr, wall
        self._start()

    def _start(self) -> None:
        self._buffer = b""
        self._control, theirs = socket.socketpair()
        with theirs:
            settings = server_settings(self.layers, self.memory_mb, self.file_mb)
            self._server = subprocess.Popen(
                server_command(str(theirs.fileno()), settings),
                env=server_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        if not self._listen(30.0):
            why = self._stop().strip().splitlines()[-1:]
            raise ConfigError(f"the sandbox does not start ({self.layers.describe()}): {why}")

    def launch(
        self,
        kind: str,
        payload: dict[str, Any],
        wall: float,
        stdin: bytes = b"",
        extra: tuple[int, ...] = (),
    ) -> int:
        """Start a program ("program", "serve" or "check", see jail.child); its number.

        wall: seconds until it is killed; extra: descriptors that it gets after the standard ones.
        """
        self._next += 1
        code = memory_file(json.dumps(payload).encode())
        files = [memory_file(stdin), memory_file(), memory_file(), code]
        order = json.dumps({"run": self._next, "kind": kind, "wall": wall}).encode() + b"\n"
        try:
            socket.send_fds(self._control, [order], [*files, *extra])
        except OSError:  # the server died before it had the program: a new one runs it
            self._lost()
            socket.send_fds(self._control, [order], [*files, *extra])
        self._files[self._next] = (files[1], files[2], wall)
        os.close(files[0])
        os.close(code)
        return self._next

    def kill(self, run: int) -> None:
        try:
            self._control.sendall(json.dumps({"kill": run}).encode() + b"\n")
        except OSError:
            self._lost()

    def runs(self, run: int) -> bool:
        """Whether nobody has waited for it yet."""
        return run in self._files

    def wait(self, run: int, grace: float | None = None) -> Ended:
        """Its end, which the wall clock of the server brings about at the latest.

        grace: seconds until it is killed earlier.
        """
        if grace is not None:
            self._until(run, grace)
            self.kill(run)
        while run not in self._ended:
            if not self._listen(self._files[run][2] + SILENCE):
                self._lost()
        end = self._ended.pop(run) or {"status": 9, "why": "server", "cpu": 0.0, "rss_mb": 0.0}
        out, err = (self._read(fd) for fd in self._files.pop(run)[:2])
        stderr = err[-4000:].decode(errors="replace")
        return Ended(end["status"], end["why"], end["cpu"], end["rss_mb"], out, stderr)

    def _lost(self) -> None:
        """The server has gone, and what it ran with it: start another."""
        for run in self._files:
            self._ended.setdefault(run, {})
        self._stop()
        self._start()

    def _until(self, run: int, seconds: float) -> None:
        """Listen until it has ended, at most that long."""
        until = time.monotonic() + seconds
        while run not in self._ended and (left := until - time.monotonic()) > 0:
            if not self._listen(left):
                return

    def _read(self, fd: int) -> bytes:
        data = os.pread(fd, int(self.file_mb * 2**20), 0)
        os.close(fd)
        return data

    def _listen(self, seconds: float) -> bool:
        """Take in what the server says; False where it has gone or says nothing for that long."""
        try:
            self._control.settimeout(seconds)
            data = self._control.recv(1 << 16)
        except OSError:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in map(json.loads, lines):
            if "ended" in line:
                self._ended[line["ended"]] = line
        return bool(data)

    def _stop(self) -> str:
        """End the server and everything that it runs; what it wrote to stderr."""
        self._control.close()
        try:
            _, errors = self._server.communicate(timeout=10.0)
        except subprocess.TimeoutExpired:
            self._server.kill()
            _, errors = self._server.communicate()
        return errors.decode(errors="replace")

    def close(self) -> None:
        self._stop()
        for out, err, _ in self._files.values():
            os.close(out)
            os.close(err)
        self._files.clear()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
