"""The scripts of experiments/ run on a tiny model, and print zeros where nothing moves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiny import cli_overrides

ROOT = Path(__file__).parents[1]


def numbers(line: str) -> list[float]:
    return [float(word.lstrip("±")) for word in line.split()]


def test_visitation_prints_what_it_measured() -> None:
    """Factor 0 is no step: the same random numbers give the same responses, so exactly 0."""
    command = [sys.executable, "-m", "experiments.visitation", "--after", "1", "--prompts", "64"]
    command += ["--group", "2", "--factors", "0", "1", *cli_overrides()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, still, moved = done.stdout.splitlines()
    assert numbers(still) == [0.0] * 15
    factor, measured, _, local, _, visitation, _, both, *_ = numbers(moved)
    assert factor == 1 and measured != 0 != local
    assert abs(local + visitation - both) < 2e-4


def test_visitation_names_a_mistake() -> None:
    for words, message in (
        (["--prompts", "65"], "--prompts 65 is not a multiple of 64"),
        (["--set", "task.name=sums"], "unknown task 'sums'"),
    ):
        command = [sys.executable, "-m", "experiments.visitation", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr, done.stderr
