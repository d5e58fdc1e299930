"""A helper process that answers each JSON line with a JSON line."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from entropy_lab.errors import RunError

_TAIL = 500  # characters of the log in an error


class Process:
    """Started at once, ended by `close` or by the end of this process; never used after an error.

    name: what errors call it; log: the file that takes whatever it prints.
    """

    def __init__(self, command: list[str], env: dict[str, str], log: Path, name: str):
        self.name, self.log = name, log
        self._unread = b""
        try:
            with log.open("wb") as out:
                # A session of its own: Ctrl-C is for the trainer, which saves and then closes it.
                self._child = subprocess.Popen(
                    command,
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=out,
                    env=env,
                    start_new_session=True,
                )
        except OSError as e:
            raise RunError(f"cannot start {name} with {command[0]}: {e.strerror or e}") from None

    def ask(self, do: str, timeout: float | None = None, **arguments: Any) -> dict[str, Any]:
        """The answer to {"do": do, ...}.

        Raises RunError, with the end of the log, where the process dies, reports an error or takes
        more than `timeout` seconds. After any exception it has been ended.
        """
        try:
            line = json.dumps({"do": do, **arguments}).encode() + b"\n"
            answer = json.loads(self._exchange(line, do, timeout))
            if "error" in answer and not answer.get("missing"):
                raise RunError(f"{self.name} failed to {do}: {answer['error']}{self.tail()}")
            return answer
        except BaseException:
            self.close(patience=0)
            raise

    def _exchange(self, line: bytes, do: str, timeout: float | None) -> bytes:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(line)
        except OSError:
            raise self._dead(do) from None
        ready = select.poll()
        ready.register(self._child.stdout, select.POLLIN)
        end = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = None if end is None else max(0.0, end - time.monotonic()) * 1000
            if not ready.poll(left):
                raise RunError(
                    f"{self.name} took more than {timeout:g} s to {do}: allow more with "
                    f"vllm.start_timeout, or see what it waits for{self.tail()}"
                )
            part = os.read(self._child.stdout.fileno(), 1 << 16)
            if not part:
                raise self._dead(do)
            self._unread += part
        found, _, self._unread = self._unread.partition(b"\n")
        return found

    def _dead(self, do: str) -> RunError:
        self.close()
        code = self._child.returncode
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", which is also how the system ends a process that is out of memory"
        return RunError(f"{self.name} died while it had to {do}: {how}{self.tail()}")

    def tail(self) -> str:
        """The end of the log in one line, to be put behind an error."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        text = " | ".join(" ".join(line.split()) for line in lines if line.strip())
        return f"; its log ends: {text[-_TAIL:]}" if text else ""

    def close(self, patience: float = 10.0) -> None:
        """End it: by closing its input, by force after `patience` seconds. Twice is harmless."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
