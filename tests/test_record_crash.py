"""Kills and rewinding: what was durable stays, and a rewound run continues exactly."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from entropy_lab.errors import RunError
from entropy_lab.record import create_run, open_run, rewind, write_evals
from record_rows import (
    check_rows,
    eval_rows,
    files_of,
    is_probed,
    new_writer,
    record,
    start_child,
    uninterrupted,
)

LAST = 100


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    return uninterrupted(tmp_path_factory.mktemp("reference") / "run", LAST)


@pytest.mark.parametrize("attempt", range(5))
def test_sigkill_at_any_moment(tmp_path, reference, attempt):
    run_dir = tmp_path / "run"
    child = start_child(run_dir, LAST)
    metrics, deadline = run_dir / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(attempt).uniform(0.0, 0.6))
    child.kill()
    child.communicate()
    run = open_run(run_dir)
    lines = run._log.lines
    check_rows(run_dir, lines[-1]["tokens_through"] if lines else None)
    note = run_dir / "checkpoint"
    checkpoint = int(note.read_text()) if note.exists() else -1
    rewind(run_dir, checkpoint)
    assert not list(run_dir.rglob("*.tmp")) and open_run(run_dir).last_step in (checkpoint, None)
    with new_writer(run_dir) as writer:
        record(writer, checkpoint + 1, LAST)
    assert files_of(run_dir) == files_of(reference)


@pytest.mark.parametrize("step", [-1, 0, 7, 9, 10, 16, 20])
def test_rewind_anywhere_and_rewrite_gives_the_same_rows(tmp_path, step):
    whole = uninterrupted(tmp_path / "whole", 20)
    run_dir = uninterrupted(tmp_path / "cut", 20)
    (run_dir / "steps" / "part-1.tmp").write_bytes(b"x")
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 21, "rew')
    rewind(run_dir, step)
    run = open_run(run_dir)
    assert run.last_step == (step if step >= 0 else None)
    assert run.steps_probed == [s for s in range(step + 1) if is_probed(s)]
    if step >= 0:
        assert run.samples()["step"].max() <= step and run.steps()["step"].max() == step
    with new_writer(run_dir) as writer:
        record(writer, step + 1, 20)
    left, right = open_run(run_dir), open_run(whole)
    for kind in ("tokens", "steps", "samples"):
        assert getattr(left, kind)().equals(getattr(right, kind)()), kind
    columns = [name for name in right.metrics() if name != "tokens_through"]
    assert left.metrics()[columns].equals(right.metrics()[columns])
    if (step + 1) % 8 == 0:  # where a flush() ended the step even the bytes agree
        assert files_of(run_dir) == files_of(whole)


class Killed(BaseException):
    """Stands for the process ending at this very call."""


def test_rewind_killed_half_way_can_be_called_again(tmp_path, monkeypatch):
    source = uninterrupted(tmp_path / "source", 12)
    write_evals(source, [*eval_rows(8), *eval_rows(12)])
    goal = Path(shutil.copytree(source, tmp_path / "goal"))
    rewind(goal, 9)
    for calls in range(100):
        run_dir = Path(shutil.copytree(source, tmp_path / f"run{calls}"))
        budget = [calls]

        def limited(inner, budget=budget):
            def call(*args, **kwargs):
                if budget[0] == 0:
                    raise Killed
                budget[0] -= 1
                return inner(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "fsync", "write"):
                patch.setattr(os, name, limited(getattr(os, name)))
            for name in ("replace", "unlink"):
                patch.setattr(Path, name, limited(getattr(Path, name)))
            try:
                rewind(run_dir, 9)
                finished = True
            except Killed:
                finished = False
        check_rows(run_dir, 9)
        assert len(open_run(run_dir).steps()) == open_run(run_dir).last_step + 1
        rewind(run_dir, 9)
        assert files_of(run_dir) == files_of(goal)
        if finished:
            break
    assert finished and calls > 20


def test_rewind_refuses_what_it_cannot_do(tmp_path):
    run_dir = uninterrupted(tmp_path / "run", 20)
    with pytest.raises(RunError, match="to step 21: it is recorded through step 20"):
        rewind(run_dir, 21)
    (run_dir / "steps" / "part-00000019-00000020.parquet").unlink()  # lost with the machine
    with pytest.raises(RunError, match="to step 20: it is recorded through step 18"):
        rewind(run_dir, 20)
    straddling = run_dir / "tokens" / "rank=0000" / "part-00000008-00000010.parquet"
    straddling.write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"00000010.parquet is damaged .*rewind to before step 8"):
        rewind(run_dir, 9)
    rewind(run_dir, 7)
    assert not straddling.exists()
    with pytest.raises(RunError, match="is not a run"):
        rewind(tmp_path, 0)
    with pytest.raises(RunError, match="to step 0: it is recorded through no step"):
        rewind(create_run(tmp_path / "new", {}, seeds=0), 0)


def test_an_interrupted_run_is_not_written_before_it_is_rewound(tmp_path):
    run_dir = uninterrupted(tmp_path / "run", 20)
    (run_dir / "steps" / "part-00000019-00000020.parquet").unlink()
    with pytest.raises(RunError, match="ends at step 20 and its rows at step 18; rewind it"):
        new_writer(run_dir)
    rewind(run_dir, 18)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(RunError, match="was interrupted: .* with a torn line"):
        new_writer(run_dir)
