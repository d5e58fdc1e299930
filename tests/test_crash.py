"""Kill -9 at any moment: the directory is readable, and the resumed run equals the whole one."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash import PHASES, check_same, durations_of, kill_and_resume, moments, train

CASES = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run, which also says how long each phase takes."""
    folder = tmp_path_factory.mktemp("crash")
    assert train(folder / "first") == 0  # makes the model, so that the next one is timed without
    assert train(folder / "whole") == 0
    check_same(folder / "first", folder / "whole")
    durations = durations_of(folder / "whole")
    assert all(durations[phase] for phase in PHASES)
    return folder / "whole"


@pytest.mark.parametrize("phase", ["update", "checkpoint", "write"])
def test_killed_in_a_phase(whole: Path, tmp_path: Path, phase: str) -> None:
    found = next(m for m in moments(durations_of(whole), len(PHASES), 1) if m.phase == phase)
    kill_and_resume(tmp_path / "run", whole, found)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(CASES))
def test_killed_at_a_random_moment(whole: Path, tmp_path: Path, number: int) -> None:
    moment = moments(durations_of(whole), CASES, 0)[number]
    print(kill_and_resume(tmp_path / "run", whole, moment))
