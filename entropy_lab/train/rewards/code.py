"""Rewards of code: a response's program against the tests of its problem, in the sandbox.

What a program can and cannot reach is in `isolation`. What it cannot know: outputs of stdin tests
and results of calls are compared in this process, and assertions run in a second jailed process
that the solution is not in, so no program has an expected value, an assertion or a way to report
in its memory. What it can still do: answer the tests' inputs from a table that it brought along,
and, for assert-style tests whose prompt is not given, supply the helpers that the test code takes
from the solution (a function `poly` that always returns 0).
"""

from __future__ import annotations

import queue
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.code_run import Budget, CaseOutcome, Limits, run_tests
from entropy_lab.train.rewards.code_tests import AssertTests, Tests, parses, read_tests
from entropy_lab.train.rewards.isolation import Isolation, isolation
from entropy_lab.train.rewards.sandbox import Sandbox

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.M | re.S)
PYTHON = {"python", "py", "python3"}


@dataclass(frozen=True)
class CodeGraded:
    """What became of each test of one response, in their order.

    total: how many tests the problem has; fewer were run where the first failure ends it.
    """

    cases: tuple[CaseOutcome, ...]
    total: int
    program: str

    @property
    def passed(self) -> bool:
        return self.share == 1.0

    @property
    def share(self) -> float:
        """Tests passed over tests of the problem."""
        return sum(case.outcome == "passed" for case in self.cases) / self.total

    @property
    def marks(self) -> str:
        """A letter for each test, in order: the first of its outcome, - where it was not run."""
        return "".join(case.outcome[0] for case in self.cases).ljust(self.total, "-")

    @property
    def reason(self) -> str:
        """The first failure, e.g. "test 3 of 10: timeout: ..."; empty where all passed."""
        for number, case in enumerate(self.cases, 1):
            if case.outcome != "passed":
                return f"test {number} of {self.total}: {case.outcome}: {case.reason}"
        return ""

    def reward(self, partial: bool = False) -> float:
        """1.0 where all tests passed, else 0.0; partial: the share of them that did."""
        return self.share if partial else float(self.passed)


def extract_code(response: str) -> str:
    """The program of a response: its last fenced block marked as Python, else its last fenced
    block of any kind, else all of it. A block that is never closed is none."""
    blocks = FENCE.findall(response)
    python = [code for language, code in blocks if language.lower() in PYTHON]
    if python or blocks:
        return python[-1] if python else blocks[-1][1]
    return response


def completed(program: str, tests: Tests) -> str:
    """The program, or, where it is none but goes on where the prompt ends (as a base model does
    with HumanEval's), prompt and program together."""
    if isinstance(tests, AssertTests) and tests.prompt and not parses(program):
        together = tests.prompt + program
        return together if parses(together) else program
    return program


class CodeGrader:
    """Grades responses in parallel, one fork server a worker.

    timeout: seconds of wall clock a test (6, LiveCodeBench's). total_timeout: seconds of all tests
    of one response. memory_mb: address space of a program. output_mb: what it prints, and any file.
    partial: run every test, and not only up to the first that fails. A result does not depend on
    the worker or on what ran before; only a program near a time limit can go either way.

    Raises ConfigError where this machine cannot isolate programs, unless allow_unsandboxed.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout: float = 6.0,
        memory_mb: int = 1024,
        total_timeout: float = 60.0,
        output_mb: float = 16.0,
        partial: bool = False,
        allow_unsandboxed: bool = False,
        layers: Isolation | None = None,
    ) -> None:
        self.limits = Limits(timeout, total_timeout, memory_mb, output_mb, partial)
        if workers < 1:
            raise ConfigError(f"workers = {workers} is not valid: set at least 1")
        layers = isolation() if layers is None else layers
        if not allow_unsandboxed:
            layers.demand()
        self._free: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        self._all: list[Sandbox] = []
        try:
            for _ in range(workers):
                self._all.append(Sandbox(layers, memory_mb, output_mb))
                self._free.put(self._all[-1])
        except BaseException:
            self.close()
            raise
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="grader")

    def grade(self, responses: Sequence[str], tests: Sequence[Any]) -> list[CodeGraded]:
        """One result a response, in order; tests: of each response, in a layout of `read_tests`.

        Raises ConfigError where the two differ in number or tests cannot be read.
        """
        if len(responses) != len(tests):
            raise ConfigError(f"{len(responses)} responses have {len(tests)} tests: pair them")
        # Responses of a group share one object, which may hold megabytes.
        read = {id(given): read_tests(given) for given in {id(t): t for t in tests}.values()}
        jobs = [(text, read[id(given)]) for text, given in zip(responses, tests, strict=True)]
        return list(self._pool.map(lambda job: self._one(*job), jobs))

    def _one(self, response: str, tests: Tests) -> CodeGraded:
        program = completed(extract_code(response), tests)
        sandbox = self._free.get()
        try:
            cases, total = run_tests(sandbox, program, tests, Budget(self.limits))
        finally:
            self._free.put(sandbox)
        return CodeGraded(tuple(cases), total, program)

    def close(self) -> None:
        """End the servers and whatever they run."""
        if hasattr(self, "_pool"):
            self._pool.shutdown(cancel_futures=True)
        for sandbox in self._all:
            sandbox.close()
        self._all.clear()

    def __enter__(self) -> CodeGrader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def grade_code(response: str, tests: Any, **settings: Any) -> CodeGraded:
    """What became of each test of one response; settings: of CodeGrader.

    It starts and ends a server; a CodeGrader that is kept grades many times as fast.
    """
    with CodeGrader(workers=1, **settings) as grader:
        return grader.grade([response], [tests])[0]


def code_reward(response: str, tests: Any, *, partial: bool = False, **settings: Any) -> float:
    """1.0 where the program of the response passes all tests, else 0.0.

    partial: the share of the tests that it passes. tests: a layout of `read_tests`; settings:
    timeout, memory_mb, total_timeout, output_mb, allow_unsandboxed of CodeGrader. Raises
    ConfigError where programs cannot be isolated here, or the tests cannot be read.
    """
    return grade_code(response, tests, partial=partial, **settings).reward(partial)
