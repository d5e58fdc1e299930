"""From the runs of an experiment to the small tables in experiments/results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, runs: Sequence[Path]) -> None:
    raise NotImplementedError
