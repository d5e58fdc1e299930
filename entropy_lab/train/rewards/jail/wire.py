"""Python values as JSON and back, and lines of JSON over a file descriptor.

A value from a jailed program is data: reading it runs no code of the program and nothing of its
classes arrives, so an object that claims to equal everything arrives as an opaque handle, and a
subclass of int as an int. None, bool, str, float, list and small int stand for themselves; the
rest is a dict with one letter: t tuple, s set, f frozenset, d dict (pairs), i large int, b bytes,
c complex, r range, h an object that stays where it is (number, type), p one that comes back home.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

SMALL = 2**63


class Handle:
    """An object of the other side that is not plain data; equal to itself alone."""

    def __init__(self, number: int, kind: str) -> None:
        self.number, self.kind = number, kind

    def __repr__(self) -> str:
        return f"<a {self.kind} of the program>"


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """JSON of the value; keep(object) gives the JSON of one that is not plain data."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return int(value) if -SMALL < value < SMALL else {"i": hex(value)}
    if isinstance(value, list):
        return [encode(v, keep) for v in value]
    if isinstance(value, tuple):
        return {"t": [encode(v, keep) for v in value]}
    if isinstance(value, dict):
        return {"d": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    if isinstance(value, set | frozenset):
        return {"f" if isinstance(value, frozenset) else "s": [encode(v, keep) for v in value]}
    if isinstance(value, bytes | bytearray):
        return {"b": bytes(value).hex()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, range):
        return {"r": [value.start, value.stop, value.step]}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), keep)
    return keep(value)


def decode(data: Any, handle: Callable[[int, str], Any], home: Callable[[Any], Any]) -> Any:
    """The value of such JSON; handle(number, type) and home(reference) make the objects.

    Raises ValueError or TypeError where the JSON is none of ours.
    """

    def walk(data: Any) -> Any:
        if isinstance(data, list):
            return [walk(v) for v in data]
        if not isinstance(data, dict):
            return data
        [(letter, held)] = data.items()
        if letter == "d":
            return {walk(k): walk(v) for k, v in held}
        if letter in "tsf":
            return {"t": tuple, "s": set, "f": frozenset}[letter](walk(v) for v in held)
        if letter == "i":
            return int(held, 16)
        if letter == "b":
            return bytes.fromhex(held)
        if letter == "c":
            return complex(*held)
        if letter == "r":
            return range(*held)
        if letter == "h":
            return handle(int(held[0]), str(held[1]))
        if letter == "p":
            return home(held)
        raise ValueError(f"unknown letter {letter!r}")

    return walk(data)


def nothing_home(reference: Any) -> Any:
    raise ValueError("a reference to an object of this side, which keeps none")


class Lines:
    """Lines of JSON over one file descriptor, in both directions."""

    def __init__(self, fd: int) -> None:
        self.fd, self._rest = fd, b""

    def send(self, data: Any) -> None:
        rest = json.dumps(data).encode() + b"\n"
        while rest:
            rest = rest[os.write(self.fd, rest) :]

    def receive(self) -> Any:
        """The next line; raises EOFError where the other side has gone."""
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            if not (read := os.read(self.fd, 65536)):
                raise EOFError("the program ended")
            parts.append(read)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return json.loads(line)
