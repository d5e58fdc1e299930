"""A log with a limit stops at a step that its rows alone decide, and says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from entropy_lab.record import RunWriter, open_run, rewind
from record_rows import CHECKPOINT_EVERY, is_probed, new_run, record

LAST, LIMIT = 40, 80_000


def new_writer(run_dir: Path, limit: float = LIMIT) -> RunWriter:
    return RunWriter(run_dir, flush_steps=3, max_bytes=limit)


@pytest.fixture(scope="module")
def limited(tmp_path_factory) -> Path:
    run_dir = new_run(tmp_path_factory.mktemp("limited") / "run")
    with new_writer(run_dir) as writer:
        record(writer, 0, LAST)
    return run_dir


def full_from(run_dir: Path) -> int:
    lines = open_run(run_dir).metrics()
    full = lines["log_full"]
    first = int(lines["step"][full].iloc[0])
    assert full.tolist() == [step >= first for step in lines["step"]]  # for good
    return first


def test_past_the_limit_rows_and_texts_are_left_out_and_numbers_go_on(limited: Path) -> None:
    run, end = open_run(limited), full_from(limited)
    assert 8 < end < 30
    assert run.steps_probed == [step for step in range(end) if is_probed(step)]
    assert run.steps()["step"].tolist() == [*range(LAST + 1)]
    samples = run.samples()
    assert samples["step"].tolist() == [s for s in range(0, LAST + 1, 2) for _ in range(2)]
    late = samples["step"] > end
    assert samples["response"][late].isna().all() and samples["prompt"][late].isna().all()
    assert samples["response"][samples["step"] < end].notna().all()
    assert samples["reward"].notna().all()
    size = sum(p.stat().st_size for kind in ("tokens", "samples") for p in
               (limited / kind).rglob("*.parquet"))  # fmt: skip
    # Random keys are larger than any real ones; two files have 13 kB of footers.
    assert 0.7 * LIMIT < size < 1.2 * LIMIT + 13_000


def test_without_a_limit_nothing_is_left_out_or_said(tmp_path: Path) -> None:
    run_dir = new_run(tmp_path / "run")
    with new_writer(run_dir, 0) as writer:
        record(writer, 0, 20)
        assert not writer.full
    assert "log_full" not in open_run(run_dir).metrics()
    assert open_run(run_dir).steps_probed == [s for s in range(21) if is_probed(s)]


@pytest.mark.parametrize("step", [CHECKPOINT_EVERY - 1, 4 * CHECKPOINT_EVERY - 1])
def test_a_resumed_run_stops_at_the_same_step(tmp_path: Path, limited: Path, step: int) -> None:
    assert CHECKPOINT_EVERY - 1 < full_from(limited) < 4 * CHECKPOINT_EVERY - 1
    run_dir = new_run(tmp_path / "run")
    with new_writer(run_dir) as writer:
        record(writer, 0, 36)
    rewind(run_dir, step)
    with new_writer(run_dir) as writer:
        assert writer.full == (step >= full_from(limited))
        record(writer, step + 1, LAST)
    for kind in ("tokens", "samples", "steps"):
        assert getattr(open_run(run_dir), kind)().equals(getattr(open_run(limited), kind)()), kind
    names = ["log_full", "log_bytes"]
    assert open_run(run_dir).metrics()[names].equals(open_run(limited).metrics()[names])


def test_a_higher_limit_lets_rows_in_again(tmp_path: Path) -> None:
    run_dir = new_run(tmp_path / "run")
    with new_writer(run_dir) as writer:
        record(writer, 0, 31)
        assert writer.full
    with new_writer(run_dir, 10 * LIMIT) as writer:
        assert not writer.full
        record(writer, 32, LAST)
    run = open_run(run_dir)
    assert run.steps_probed[-1] == max(s for s in range(LAST + 1) if is_probed(s))
    assert not run.metrics()["log_full"].iloc[-1]
