"""One program against the tests of its problem: what became of each."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.code_compare import same_output, same_value
from entropy_lab.train.rewards.code_tests import AssertTests, CallTests, StdinTests, Tests
from entropy_lab.train.rewards.jail.child import NOT_LOCKED
from entropy_lab.train.rewards.jail.wire import encode
from entropy_lab.train.rewards.link import Link
from entropy_lab.train.rewards.sandbox import Ended, Sandbox

Outcome = Literal["passed", "wrong", "timeout", "memory", "error", "killed", "refused"]
SIGNALS: dict[int, str] = {
    signal.SIGXFSZ: "it printed or wrote more than {output_mb} MiB",
    signal.SIGKILL: "by the kernel, for CPU seconds or for the memory of the machine",
}
GRACE = 0.5  # seconds for a process that stopped answering to end by itself, so that it says why


@dataclass(frozen=True)
class CaseOutcome:
    """What became of one test, and why.

    passed; wrong: another answer; timeout: of the test or the problem; memory: out of it; error: an
    exception or an exit code; killed: ended by a signal or by a limit on output; refused: the
    sandbox could not be put on, and nothing ran.
    """

    outcome: Outcome
    reason: str = ""


Outcomes = Generator[CaseOutcome, None, None]


@dataclass(frozen=True)
class Limits:
    """Of one response: seconds a test, seconds in all, MiB of memory and of output."""

    timeout: float
    total_timeout: float
    memory_mb: int
    output_mb: float
    partial: bool

    def __post_init__(self) -> None:
        for name in ("timeout", "total_timeout", "memory_mb", "output_mb"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)} is not valid: set it above 0")


class Budget:
    """The clock of one response."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.end = limits, time.monotonic() + limits.total_timeout

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    @property
    def test(self) -> float:
        """Seconds of the next test."""
        return min(self.limits.timeout, self.left)

    def spent(self) -> CaseOutcome:
        used = self.limits.timeout if self.left else self.limits.total_timeout
        return CaseOutcome("timeout", f"not done after {used:g} s")


NOT_RUN = "not run: the {total:g} s of the problem were used up"


def run_tests(
    sandbox: Sandbox, program: str, tests: Tests, budget: Budget
) -> tuple[list[CaseOutcome], int]:
    """(outcome of each test that was run, number of tests).

    Without `partial` the first failure ends it; with it a process that failed is replaced for the
    tests that follow.
    """
    if isinstance(tests, StdinTests):
        cases = [*zip(tests.inputs, tests.outputs, strict=True)]
        start = lambda rest: _stdin(sandbox, program, rest, budget)  # noqa: E731
    elif isinstance(tests, CallTests):
        cases = [*zip(tests.inputs, tests.outputs, strict=True)]
        start = lambda rest: _calls(sandbox, program, tests.fn_name, rest, budget)  # noqa: E731
    else:
        cases = tests.tests
        start = lambda rest: _asserts(sandbox, program, tests, rest, budget)  # noqa: E731
    found: list[CaseOutcome] = []
    while len(found) < len(cases):
        if not budget.left:
            late = CaseOutcome("timeout", NOT_RUN.format(total=budget.limits.total_timeout))
            found += [late] * (len(cases) - len(found))
            break
        with closing(start(cases[len(found) :])) as outcomes:
            for outcome in outcomes:
                found.append(outcome)
                if outcome.outcome != "passed" and not budget.limits.partial:
                    return found, len(cases)
    return found, len(cases)


def _last_line(ended: Ended) -> str:
    return (ended.stderr.strip().splitlines() or ["no message"])[-1][:500]


def _failure(ended: Ended, budget: Budget) -> CaseOutcome | None:
    """What a program's end says by itself; None where it ended as it should."""
    if ended.why == "wall":
        return budget.spent()
    if ended.why == "server":
        return CaseOutcome("killed", "the sandbox's server ended while it ran")
    if ended.why == "asked":
        return CaseOutcome("killed", "it no longer answered but did not end")
    if ended.signal:
        known = SIGNALS.get(ended.signal, "").format(output_mb=f"{budget.limits.output_mb:g}")
        name = signal.strsignal(ended.signal) or "unknown"
        text = f"signal {ended.signal} ({name})"
        return CaseOutcome("killed", f"{text}: {known}" if known else text)
    if ended.exit_code == NOT_LOCKED:
        return CaseOutcome("refused", f"the sandbox could not be put on: {_last_line(ended)}")
    if ended.exit_code > 0:
        line = _last_line(ended)
        if line.startswith("MemoryError"):
            return CaseOutcome("memory", f"more than {budget.limits.memory_mb} MiB: {line}")
        return CaseOutcome("error", line if ended.stderr else f"exit code {ended.exit_code}")
    return None


def _stdin(sandbox: Sandbox, program: str, cases: list[Any], budget: Budget) -> Outcomes:
    """A process for each test."""
    for given, expected in cases:
        if not budget.left:
            return
        run = sandbox.launch("program", {"code": program}, budget.test, given.encode())
        ended = sandbox.wait(run)
        failure = _failure(ended, budget)
        if failure is None:
            printed = ended.stdout.decode(errors="replace")
            if same_output(printed, expected):
                failure = CaseOutcome("passed")
            else:
                failure = CaseOutcome("wrong", f"printed {printed[:200]!r}")
        yield failure


def _end(sandbox: Sandbox, *runs: int) -> None:
    """Kill those of these processes that still run."""
    for run in filter(sandbox.runs, runs):
        sandbox.kill(run)
        sandbox.wait(run)


def _give_up(sandbox: Sandbox, run: int, error: Exception, budget: Budget) -> CaseOutcome:
    """Why the process of a solution did not answer."""
    if isinstance(error, TimeoutError):
        return budget.spent()
    if isinstance(error, ValueError):
        return CaseOutcome("killed", f"{error}")
    failure = _failure(sandbox.wait(run, GRACE), budget)
    return failure or CaseOutcome("error", "the program ended before the tests did")


def _ask(link: Link, do: str, on: Any, args: list[Any], budget: Budget) -> dict[str, Any]:
    def never(value: Any) -> Any:
        raise TypeError(f"a test has a {type(value).__name__} as argument, which is not JSON")

    until = time.monotonic() + budget.test
    link.send({"do": do, "on": on, "args": encode(args, never)}, budget.test)
    answer = link.receive(until - time.monotonic())
    if not isinstance(answer, dict) or not answer.keys() & {"value", "raised"}:
        raise ValueError("an answer that is none of ours")
    return answer


def _judge(answer: dict[str, Any], expected: list[Any], budget: Budget) -> CaseOutcome:
    if "raised" in answer:
        raised = answer["raised"]
        text = ": ".join(map(str, raised if isinstance(raised, list) else [raised]))[:500]
        if text.startswith("MemoryError"):
            return CaseOutcome("memory", f"more than {budget.limits.memory_mb} MiB: {text}")
        return CaseOutcome("error", text)
    try:
        if any(same_value(answer["value"], value) for value in expected):
            return CaseOutcome("passed")
    except RecursionError:
        pass
    return CaseOutcome("wrong", f"returned {json.dumps(answer['value'])[:200]}")


def _calls(sandbox: Sandbox, program: str, name: str, cases: list[Any], budget: Budget) -> Outcomes:
    """One process for all calls, up to the first that it does not survive."""
    with Link() as link:
        extra = (link.theirs.fileno(),)
        code = {"code": program, "tested": [name]}
        run = sandbox.launch("serve", code, budget.left + 1, extra=extra)
        link.theirs.close()
        try:
            link.receive(budget.test)
            entry = _ask(link, "entry", name, [], budget)
            for given, expected in cases:
                if "raised" in entry:
                    yield _judge(entry, [], budget)
                    continue
                yield _judge(_ask(link, "call", entry["value"], given, budget), expected, budget)
        except (OSError, EOFError, ValueError) as error:
            yield _give_up(sandbox, run, error, budget)
        finally:
            _end(sandbox, run)


def _asserts(
    sandbox: Sandbox, program: str, tests: AssertTests, cases: list[str], budget: Budget
) -> Outcomes:
    """One process for the solution, one for the tests, and the outcomes from the second."""
    payload = {"prompt": tests.prompt, "setup": tests.setup}
    payload |= {"tests": cases, "entries": tests.entries}
    wall = budget.left + 1
    with Link() as report:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            served = (theirs.fileno(),)
            code = {"code": program, "prompt": tests.prompt, "tested": tests.entries}
            solution = sandbox.launch("serve", code, wall, extra=served)
            extra = (ours.fileno(), report.theirs.fileno())
            checker = sandbox.launch("check", payload, wall, extra=extra)
        report.theirs.close()
        try:
            for _ in cases:
                outcome, reason = report.receive(budget.test)
                if outcome == "killed":
                    raise EOFError
                yield CaseOutcome(outcome, str(reason)[:500])
        except (OSError, EOFError, ValueError) as error:
            fault = _test_fault(sandbox, checker, budget) if isinstance(error, EOFError) else None
            yield fault or _give_up(sandbox, solution, error, budget)
        finally:
            _end(sandbox, solution, checker)


def _test_fault(sandbox: Sandbox, checker: int, budget: Budget) -> CaseOutcome | None:
    """Why the process of the tests ended, where that was not the solution's doing."""
    ended = sandbox.wait(checker, GRACE)
    fault = _failure(ended, budget) if ended.why != "asked" else None
    return fault and CaseOutcome(fault.outcome, f"in the test code: {fault.reason}")
