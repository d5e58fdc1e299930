"""What crosses the border of the sandbox: values, requests, and reports of test code."""

from __future__ import annotations

import json
import os
import socket
import threading
import types
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from entropy_lab.train.rewards.jail import landlock
from entropy_lab.train.rewards.jail.check import Proxy, Remote, run_checks
from entropy_lab.train.rewards.jail.serve import Server, serve
from entropy_lab.train.rewards.jail.wire import Handle, Lines, decode, encode, nothing_home
from entropy_lab.train.rewards.link import ANSWER_BYTES, Link

Point = namedtuple("Point", "x y")


def there_and_back(value: Any) -> Any:
    kept = []

    def keep(value: Any) -> Any:
        kept.append(value)
        return {"h": [len(kept) - 1, type(value).__name__]}

    return decode(json.loads(json.dumps(encode(value, keep))), Handle, nothing_home)


@pytest.mark.parametrize(
    "value",
    [
        None, True, -3, 2**63, -(2**200), 0.1, float("inf"), "é\n\ud800", [1, [2]], (1, (2, [])),
        {"a": 1, 2: (3,), (4, 5): None}, {1, 2}, frozenset({"a"}), b"\x00\xff", 1 + 2j,
        range(1, 9, 2), [], {}, (), set(), {"t": [1]},
    ],
)  # fmt: skip
def test_plain_values_arrive_as_they_were(value: Any):
    assert there_and_back(value) == value
    assert type(there_and_back(value)) is type(value)


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Point(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (bytearray(b"x"), b"x"),
    ],
)
def test_kinds_of_plain_values_arrive_plain(value: Any, arrives: Any):
    assert there_and_back(value) == arrives
    assert type(there_and_back(value)) is type(arrives)


class Equal:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def test_an_object_arrives_as_a_handle_that_equals_nothing():
    [handle] = there_and_back([Equal()])
    assert repr(handle) == "<a Equal of the program>"
    assert handle != 1 and handle != Equal.__name__ and handle == handle


@pytest.mark.parametrize("junk", [{"z": 1}, {"t": 1, "s": 2}, {"i": 5}, {"p": "f"}, {}])
def test_junk_is_refused(junk: Any):
    with pytest.raises((ValueError, TypeError)):
        decode(junk, Handle, nothing_home)


SOLUTION = """
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def total(self): return self.a + self.b
    def __len__(self): return 2
    def __getitem__(self, i): return (self.a, self.b)[i]
    def __str__(self): return "pair"
def up(n):
    for i in range(n): yield i
def first(pairs): return pairs[0].a
def fail(): raise KeyError("none")
def odd(): raise StopAsyncIteration("x")
def helper(x): return 0
def abs(x): return 0
def own(): raise type("Own", (Exception,), {})("mine")
"""


def solution() -> types.ModuleType:
    module = types.ModuleType("solution")
    exec(SOLUTION, vars(module))
    return module


@pytest.fixture
def channel() -> Iterator[int]:
    """Our end of a channel to a thread that serves the solution above."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(solution(), theirs.fileno()))
    thread.start()
    yield ours.fileno()
    ours.close()
    thread.join()
    theirs.close()


def test_objects_of_the_solution_are_used_where_they_are(channel: int):
    remote = Remote(channel)
    assert remote.lines.receive() == {"value": None}
    pair = Proxy(remote, "Pair", "type")(3, b=4)
    assert isinstance(pair, Proxy) and (pair.a, pair.total(), pair[1], len(pair)) == (3, 7, 4, 2)
    assert str(pair) == "pair" and bool(pair)
    assert Proxy(remote, "first", "function")([pair]) == 3
    pair.a = [pair]  # a tree of the solution's own nodes
    assert pair.a[0].b == 4
    assert list(Proxy(remote, "up", "function")(3)) == [0, 1, 2]
    with pytest.raises(KeyError, match="none"):
        Proxy(remote, "fail", "function")()
    with pytest.raises(RuntimeError, match="Own: mine"):
        Proxy(remote, "own", "function")()
    with pytest.raises(NameError, match="name 'nothing' is not defined"):
        Proxy(remote, "nothing", "function")()
    with pytest.raises(TypeError, match="a test cannot hand a function to the program"):
        Proxy(remote, "first", "function")(lambda: 0)


def test_each_test_is_reported_with_its_own_reason(channel: int):
    reader, writer = os.pipe()
    payload = {
        "prompt": "def helper(x): return x",
        "setup": "import math\nscale = 2",
        "entries": ["first"],
        "tests": [
            "assert first([Pair(5, 0)]) == 5 and helper(1) == 1",  # the prompt's helper
            "assert abs(-3) == 3 and math.floor(2.5) == scale",  # builtins and setup win
            "assert first([Pair(5, 0)]) == 6",
            "assert first([Pair(5, 0)]) == 6, 'six'",
            "assert unknown(1)",
            "assert string.digits[1] == '1'",  # the standard library without an import
            "fail()",
        ],
    }
    run_checks(payload, channel, writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        found = [json.loads(line) for line in file]
    assert found == [
        ["passed", ""],
        ["passed", ""],
        ["wrong", "assertion failed: assert first([Pair(5, 0)]) == 6"],
        ["wrong", "assertion failed: six"],
        ["error", "NameError: name 'unknown' is not defined"],
        ["passed", ""],
        ["error", "KeyError: \"'none'\""],  # the text of a KeyError is its key's repr
    ]


def test_a_solution_that_goes_is_reported_and_ends_the_tests():
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    Lines(theirs.fileno()).send({"value": None})
    theirs.close()
    swallow = "try:\n    f(1)\nexcept Exception:\n    pass"
    payload = {"prompt": "", "setup": "", "entries": ["f"], "tests": [swallow, "pass"]}
    with ours:
        run_checks(payload, ours.fileno(), writer)
        run_checks(payload, ours.fileno(), writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert [json.loads(line) for line in file] == [
            ["killed", "the program ended during the test"],
            ["killed", "the program ended before the tests"],
        ]


def test_a_setup_that_fails_is_named(channel: int):
    ours, theirs = socket.socketpair()
    payload = {"prompt": "", "setup": "tree = Tree(1)", "entries": ["first"], "tests": ["pass"]}
    run_checks(payload, channel, theirs.fileno())
    message = "in the setup of the tests: NameError: name 'Tree' is not defined"
    assert Lines(ours.fileno()).receive() == ["error", message]
    ours.close()
    theirs.close()


def test_a_method_of_solution_is_the_entry():
    module = types.ModuleType("solution")
    exec("class Solution:\n    def f(self, x): return x + 1\ndef g(x): return x", vars(module))
    server = Server(module)
    entry = server.answer({"do": "entry", "on": "f", "args": []})
    assert server.answer({"do": "call", "on": entry["value"], "args": [4]}) == {"value": 5}
    missing = server.answer({"do": "entry", "on": "g", "args": []})
    assert missing["raised"] == ["AttributeError", "'Solution' object has no attribute 'g'"]


def test_a_link_gives_up_on_silence_on_length_and_on_the_end():
    with Link() as link:
        with pytest.raises(TimeoutError):
            link.receive(0.05)
        link.theirs.sendall(b'{"a": 1}\n[2]\nno json\n')
        assert [link.receive(1.0), link.receive(1.0)] == [{"a": 1}, [2]]
        with pytest.raises(ValueError, match="an answer that is no JSON"):
            link.receive(1.0)
        writer = threading.Thread(target=link.theirs.sendall, args=(b"x" * (ANSWER_BYTES + 1),))
        writer.start()
        with pytest.raises(ValueError, match="an answer of more than 4 MiB"):
            link.receive(10.0)
        writer.join()
        link.theirs.close()
        with pytest.raises(EOFError):
            link.receive(1.0)


@pytest.mark.parametrize(
    ("version", "size", "files"),
    [(1, 8, 13), (2, 8, 14), (3, 8, 15), (4, 16, 15), (5, 16, 16), (6, 24, 16), (7, 24, 16)],
)
def test_landlock_asks_for_what_a_version_knows(version: int, size: int, files: int):
    """Numbers of rights and sizes of struct landlock_ruleset_attr in linux/landlock.h."""
    rights, attr = landlock.handled(version)
    assert (rights.bit_length(), rights & (rights + 1), len(attr)) == (files, 0, size)
