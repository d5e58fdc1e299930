"""Assert-style tests (MBPP, HumanEval) in a process that the solution is not in.

The test code sees proxies for the names of the solution: a call goes over the channel, is run in
the jailed process of the solution, and its result comes back as plain data (see wire). Operators,
equality and truth of what the test code looks at are Python's own, so a solution cannot lend them
its own, read an assertion, or report for it. What a call does to its arguments in place stays with
the solution: a test that looks for it in its own list fails.
"""

from __future__ import annotations

import builtins
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
        vars(self).update(number=number, kind=kind, _remote=remote, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote.ask("call", self._number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote.ask("attribute", self._number, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.ask("set", self._number, (name, value))

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
        self.enter(entries)

    def enter(self, entries: list[str]) -> None:
        """The functions under test, also where a prompt has a stub of one."""
        self.update((name, Proxy(self.remote, name, "function")) for name in entries)

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
    names = Names(remote, payload["entries"])

    def attempt(code: str, name: str) -> list[str]:
        try:
            exec(compile(code, name, "exec"), names)
            return ["passed", ""]
        except AssertionError as error:
            return ["wrong", f"assertion failed: {describe(error)[1] or code.strip()[:200]}"]
        except Gone as error:
            return ["killed", str(error)]
        except BaseException as error:
            return ["error", ": ".join(describe(error))]

    try:
        remote.lines.receive()
    except (EOFError, OSError, ValueError):
        out.send(["killed", "the program ended before the tests"])
        return
    for part in ("prompt", "setup"):
        outcome, reason = attempt(payload[part], f"{part}.py")
        names.enter(payload["entries"])
        if outcome != "passed":
            out.send([outcome, f"in the {part} of the tests: {reason}"])
            return
    for number, code in enumerate(payload["tests"]):
        outcome, reason = attempt(code, f"test{number}.py")
        out.send([outcome, reason])
        if outcome == "killed":
            return
