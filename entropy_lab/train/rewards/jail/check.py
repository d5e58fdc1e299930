"""Assert-style tests (MBPP, HumanEval) in a process that the solution is not in.

The test code sees proxies for the names of the solution: a call goes over the channel, is run in
the jailed process of the solution, and its result comes back as plain data (see wire). Operators,
equality and truth of what the test code looks at are Python's own, so a solution cannot lend them
its own, read an assertion, or report for it.
"""

from __future__ import annotations

import builtins
import itertools
import sys
from typing import Any

from .serve import describe
from .wire import Handle, Lines, decode, encode


class Gone(BaseException):
    """The solution's process has ended; not an Exception, so that no test code swallows it."""


class Remote:
    """The process of the solution, as the test code sees it."""

    def __init__(self, channel: int) -> None:
        self.lines = Lines(channel)

    def ask(self, do: str, on: Any, args: Any = (), kwargs: Any = ()) -> Any:
        request = {"do": do, "on": on, "args": encode(list(args), self._give)}
        request["kwargs"] = encode(dict(kwargs), self._give)
        try:
            self.lines.send(request)
            answer = self.lines.receive()
        except (EOFError, OSError, ValueError, RecursionError):
            raise Gone("the program ended during the test") from None
        if "raised" in answer:
            name, text = answer["raised"]
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise kind(text)
            raise RuntimeError(f"{name}: {text}")
        return decode(answer["value"], lambda n, kind: Proxy(self, n, kind), self._never)

    def _give(self, value: Any) -> Any:
        if isinstance(value, Proxy):
            return {"p": value._number}
        raise TypeError(f"a test cannot hand a {type(value).__name__} to the program")

    def _never(self, reference: Any) -> Any:
        raise ValueError("the program sent a reference to an object that it does not have")


class Proxy(Handle):
    """A name or an object of the solution that is not plain data."""

    def __init__(self, remote: Remote, number: Any, kind: str) -> None:
        super().__init__(number, kind)
        self._remote, self._number = remote, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote.ask("call", self._number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote.ask("attribute", self._number, (name,))

    def __getitem__(self, key: Any) -> Any:
        return self._remote.ask("item", self._number, (key,))

    def __len__(self) -> int:
        return self._remote.ask("length", self._number)

    def __iter__(self) -> Any:
        return iter(self._remote.ask("elements", self._number))

    def __str__(self) -> str:
        return self._remote.ask("text", self._number)

    def __bool__(self) -> bool:
        return True  # an object is no answer to a test of truth, and its length is not asked


class Names(dict):
    """Globals of the test code: its own, then builtins and the standard library, then remote ones.

    So a solution cannot replace `abs`, `all` or `math` of a test. The functions under test are put
    in beforehand and come first, because some are called `sum` or `max`.
    """

    def __init__(self, remote: Remote, entries: list[str]) -> None:
        super().__init__(__name__="test", __builtins__=builtins)
        self.remote = remote
        self.update((name, Proxy(remote, name, "function")) for name in entries)

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        if name in sys.stdlib_module_names and name in sys.modules:
            return sys.modules[name]
        if self.remote.ask("has", name) is not True:
            raise KeyError(name)
        return Proxy(self.remote, name, "name")


def run_checks(payload: dict[str, Any], channel: int, report: int) -> None:
    """Run each test and report [outcome, reason] of it as a line.

    payload: prompt, setup and tests as code, entries: names of the functions under test.
    """
    remote, out = Remote(channel), Lines(report)
    try:
        remote.lines.receive()
    except (EOFError, OSError, ValueError):
        out.send(["killed", "the program ended before the tests"])
        return
    names = Names(remote, payload["entries"])
    for code in (payload["prompt"], payload["setup"]):
        exec(compile(code, "setup.py", "exec"), names)
        names.update((name, Proxy(remote, name, "function")) for name in payload["entries"])
    for number, code in zip(itertools.count(), payload["tests"], strict=False):
        try:
            exec(compile(code, f"test{number}.py", "exec"), names)
            out.send(["passed", ""])
        except AssertionError as error:
            out.send(["wrong", f"assertion failed: {describe(error)[1] or code.strip()[:200]}"])
        except Gone as error:
            out.send(["killed", str(error)])
            return
        except BaseException as error:
            out.send(["error", ": ".join(describe(error))])
