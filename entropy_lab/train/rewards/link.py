"""A socket to a jailed process that may say anything, or nothing."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

ANSWER_BYTES = 4 * 2**20


class Link:
    """Our end of a socket to a jailed process: lines of JSON with a time limit and a size limit."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self._rest = b""

    def send(self, data: Any, seconds: float) -> None:
        """Raises TimeoutError, or OSError where the other side has gone."""
        self.ours.settimeout(max(seconds, 1e-3))
        self.ours.sendall(json.dumps(data).encode() + b"\n")

    def receive(self, seconds: float) -> Any:
        """Raises TimeoutError, EOFError, and ValueError for what is no line of ours."""
        until = time.monotonic() + seconds
        parts, size = [self._rest], len(self._rest)
        while b"\n" not in parts[-1]:
            self.ours.settimeout(max(until - time.monotonic(), 1e-3))
            if not (data := self.ours.recv(1 << 18)):
                raise EOFError
            if time.monotonic() > until:
                raise TimeoutError
            parts.append(data)
            size += len(data)
            if size > ANSWER_BYTES:
                raise ValueError(f"an answer of more than {ANSWER_BYTES >> 20} MiB")
        line, _, self._rest = b"".join(parts).partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("an answer that is no JSON") from None

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
