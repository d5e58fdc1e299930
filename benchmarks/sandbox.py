"""C1: how many programs a second the sandbox runs, beside a bare interpreter for each.

    python -m benchmarks.sandbox [--programs N] [--workers N]

Bar: at least 20 programs/s on 2 cores, whole (a process each, its locks, its files, comparison).
A program reads a line and prints one; a call problem has 10 calls in one process; an assert problem
takes two processes. The bare interpreter runs the same program without any isolation.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from benchmarks._bars import line, note
from entropy_lab.train.rewards.code import CodeGrader
from entropy_lab.train.rewards.isolation import isolation

PROGRAM = "n = int(input())\nprint(sum(i * i for i in range(n)))"
FUNCTION = "def f(n):\n    return sum(i * i for i in range(n))"
KINDS = {
    "stdin programs": (PROGRAM, {"inputs": ["1000\n"], "outputs": ["332833500"]}),
    "problems of 10 calls": (
        FUNCTION,
        {"fn_name": "f", "inputs": [[1000]] * 10, "outputs": [332833500] * 10},
    ),
    "problems of 3 asserts": (FUNCTION, ["assert f(1000) == 332833500"] * 3),
}


def rate(grader: CodeGrader, program: str, tests: object, count: int) -> float:
    start = time.perf_counter()
    graded = grader.grade([program] * count, [tests] * count)
    seconds = time.perf_counter() - start
    assert all(g.passed for g in graded), graded[0].reason
    return count / seconds


def bare(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        command = [sys.executable, "-I", "-S", "-c", PROGRAM]
        subprocess.run(command, input=b"1000\n", capture_output=True, check=True)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    print(f"{isolation().describe()}; {os.cpu_count()} cores, {asked.workers} workers")
    start = time.perf_counter()
    with CodeGrader(workers=asked.workers) as grader:
        note("start of the servers", f"{time.perf_counter() - start:.2f} s")
        rates = {}
        for name, (program, tests) in KINDS.items():
            rates[name] = rate(grader, program, tests, asked.programs)
        first, *others = rates
        line("C1", f"{first} a second", f"{rates[first]:.0f}", ">= 20", rates[first] >= 20)
        for name in others:
            note(f"{name} a second", f"{rates[name]:.0f}")
    note("bare interpreters a second, one at a time", f"{bare(asked.programs // 4):.0f}")


if __name__ == "__main__":
    main()
