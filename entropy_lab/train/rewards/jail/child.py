"""What a forked child does: take its files, lock itself in, run the code, end.

Nothing here returns to the caller's loop: the child leaves by _exit whatever the code does.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import random
import signal
import sys
import threading
import traceback
import types
from typing import Any

from . import check, layers, serve

# Before user code can replace them.
_exit, _read = os._exit, os.read
CODE, CHANNEL, REPORT = 3, 4, 5  # file descriptors after the standard three
NOT_LOCKED = 113  # exit status: the sandbox could not be put on, nothing was run
PRELUDE_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools "
    "operator io sys json typing"
).split()
RECURSION = 50_000


def prelude() -> dict[str, Any]:
    """The names that programs find without an import.

    Those of LiveCodeBench's runner (lcb_runner/evaluation/testing_util.py): public names of the
    modules above, in that order, builtins never hidden, and the modules themselves.
    """
    names: dict[str, Any] = {}
    modules = {name: __import__(name) for name in PRELUDE_MODULES}
    for module in modules.values():
        public = getattr(module, "__all__", [n for n in vars(module) if n[0] != "_"])
        names.update((name, getattr(module, name)) for name in public)
    builtin = vars(__import__("builtins"))
    return {name: value for name, value in names.items() if name not in builtin} | modules


def take(received: list[int]) -> None:
    """The received files as 0, 1, 2, ... and no other file."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in received]
    for target, fd in enumerate(high):
        os.dup2(fd, target)
    os.closerange(len(high), 1024)


def lock(config: dict[str, Any], home: str | None) -> None:
    """Limits, privileges and layers of this process."""
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(home or "/")
    layers.limit(config["memory_mb"], config["file_mb"], config["cpu_s"], config["processes"])
    layers.lower(config["nobody"])
    layers.lock(config, home)


def load(payload: dict[str, Any], name: str, names: dict[str, Any]) -> types.ModuleType:
    """The module that the code makes (after a prompt's, if any), under its name in sys.modules.

    payload["tested"]: functions under test, which the code has to define (or import) itself.
    """
    module = types.ModuleType(name)
    tested = payload.get("tested", ())
    vars(module).update({given: value for given, value in names.items() if given not in tested})
    sys.modules[name] = module
    for code in (payload.get("prompt", ""), payload["code"]):
        exec(compile(code, "solution.py", "exec"), vars(module))
    return module


def finish() -> None:
    """What the interpreter does at its end: join threads, exit handlers, flush."""
    getattr(threading, "_shutdown", lambda: None)()
    atexit._run_exitfuncs()
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def guarded(call: Any) -> int:
    """Exit status of a program: 0, what it exits with, or 1 with its exception on stderr."""
    status = 0
    try:
        try:
            call()
        except SystemExit as leave:
            if leave.code is not None:
                status = leave.code if isinstance(leave.code, int) else 1
        finish()
    except BaseException as error:
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        os.write(2, f"\n{text[-1000:]}\n".encode(errors="replace"))
        return 1
    return status & 0xFF


def run(kind: str, names: dict[str, Any]) -> int:
    parts = []
    while part := _read(CODE, 1 << 20):
        parts.append(part)
    payload = json.loads(b"".join(parts))
    os.close(CODE)
    if kind == "program":
        return guarded(lambda: load(payload, "__main__", names))
    if kind == "serve":
        # A name of its own, so that what stands under `if __name__ == "__main__"` does not run.
        return guarded(lambda: serve.serve(load(payload, "solution", names), CHANNEL))
    return guarded(lambda: check.run_checks(payload, CHANNEL, REPORT))


def main(
    kind: str,
    received: list[int],
    config: dict[str, Any],
    home: str | None,
    names: dict[str, Any],
) -> None:
    """Everything from fork to exit."""
    status = NOT_LOCKED
    try:
        take(received)
        lock(config, home)
        status = 1
        sys.argv = ["solution.py"]
        sys.setrecursionlimit(RECURSION)
        random.seed(0)
        status = run(kind, names)
    except BaseException as error:
        os.write(2, f"\n{type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:
        _exit(status)
