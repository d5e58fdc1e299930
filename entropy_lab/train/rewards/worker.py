"""The program of a grading process: pairs of answers in, verdicts out, one JSON line each.

Started by `Pool` as a program of its own, so that it imports neither the caller's main module nor
torch, and can be killed. Its limits: memory by RLIMIT_AS, processor time by an exception, wall
time by a signal that ends the process, which holds even if the caller is gone.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any, TextIO

MEMORY = 2 * 2**30  # bytes of address space; an idle worker has about 0.4 GiB
_SPENT = 0.8  # of the time limit, in processor seconds: stops what Python code can be stopped in
_BEYOND = 1.5  # of the time limit, in wall seconds: the caller should have killed us before


class _Spent(BaseException):
    """Not an Exception, because the libraries catch those and go on."""


def _stop(*_: Any) -> None:
    raise _Spent


def verdict(gold: str, given: str, timeout: float) -> tuple[bool, str]:
    """(the same, note): note is "", "timeout" or what went wrong; never raises."""
    from entropy_lab.train.rewards.equality import same_answer
    from entropy_lab.train.rewards.notation import notation, squeezed

    signal.setitimer(signal.ITIMER_REAL, _BEYOND * timeout)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SPENT * timeout)
    try:
        return same_answer(gold, given), ""
    except _Spent:
        note = "timeout"
    except MemoryError:
        note = "out of memory"
    except Exception as error:  # the libraries raise anything on malformed input
        note = type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return squeezed(notation(gold)) == squeezed(notation(given)), note


def main() -> None:
    """Answer each line [gold, given, seconds] of the input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    signal.signal(signal.SIGVTALRM, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing a library prints is a reply
    try:
        verdict("1", r"\sqrt{1}", 60.0)  # imports, and builds the tables of the parser
        import math_verify  # noqa: F401
    except Exception as error:
        _say(replies, [False, f"{type(error).__name__}: {error}"])
        return
    _say(replies, [True, ""])
    for line in sys.stdin:
        _say(replies, verdict(*json.loads(line)))


def _say(replies: TextIO, message: Any) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
