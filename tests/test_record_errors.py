"""What a run directory that cannot be read or written says, in one line each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from entropy_lab.errors import RunError
from entropy_lab.record import RunWriter, create_run, open_run, set_status
from record_rows import (
    is_probed,
    uninterrupted,
)

LAST = 20
PROBED = [step for step in range(LAST + 1) if is_probed(step)]


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return uninterrupted(tmp_path / "run", 20)


def message(action) -> str:
    with pytest.raises(RunError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_not_a_run(tmp_path):
    assert message(lambda: open_run(tmp_path / "no")).endswith(
        "no does not exist: give the directory of a run"
    )
    assert "is not a run: it has no run.json" in message(lambda: open_run(tmp_path))
    (tmp_path / "file").write_text("")
    assert "file is a file: give the directory of a run" in message(
        lambda: open_run(tmp_path / "file")
    )
    (tmp_path / "run.json").write_text("{")
    assert "run.json is not valid JSON" in message(lambda: open_run(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    assert "states no schema_version" in message(lambda: open_run(tmp_path))


def test_a_newer_schema_names_the_version_it_needs(run_dir):
    info = json.loads((run_dir / "run.json").read_text())
    info |= {"schema_version": 2, "versions": {"entropy_lab": "0.9.0"}}
    (run_dir / "run.json").write_text(json.dumps(info))
    text = "has schema 2 and this version reads up to 1: needs entropy-lab >= 0.9.0"
    assert text in message(lambda: open_run(run_dir))


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ("m1", "profile 'full' logs it"),
        ("dH_pred_discriminant", "profile 'full' logs it (or add 'discriminant'"),
        ("entropi", "did you mean 'entropy'?"),
        ("zzz", "no profile logs it; the user's own columns are named x_*"),
    ],
)
def test_a_missing_token_column_says_who_logs_it(run_dir, column, hint):
    run = open_run(run_dir)
    for read in (
        run.tokens,
        run.iter_steps,
        lambda columns: run.tokens(columns=columns, lazy=True),
    ):
        text = message(lambda read=read: read(columns=["dH", column]))
        assert f"has no tokens column {column!r}: {hint}" in text


def test_missing_columns_and_steps(run_dir):
    run = open_run(run_dir)
    assert "no steps column 'lrr': did you mean 'lr'?" in message(lambda: run.steps(["lrr"]))
    assert "no samples column 'zz': it has step, rollout" in message(lambda: run.samples(["zz"]))
    text = message(lambda: run.tokens(step=[3, 5]))
    assert text.endswith("no token rows of step 5: it has 14 probed steps 0..19")


def test_an_empty_run(tmp_path):
    run_dir = create_run(tmp_path / "run", {}, seeds=0)
    run = open_run(run_dir)
    assert run.last_step is None and run.steps_probed == [] and run.token_files == []
    for read in (run.metrics, run.tokens, run.steps, run.samples, run.iter_steps):
        assert "holds no finished step" in message(read)
    assert "has no fixed probe set" in message(run.fixed)
    writer = RunWriter(run_dir)
    writer.commit({"step": 0})
    assert "no readable tokens rows: rows appear on disk when" in message(open_run(run_dir).tokens)
    writer.close()


def test_all_parts_damaged(run_dir):
    for path in open_run(run_dir).token_files:
        path.write_bytes(b"")
    text = message(open_run(run_dir).tokens)
    assert "no readable tokens rows: 8 damaged parts, the first part-00000000" in text


def test_a_directory_that_holds_a_run_is_refused(run_dir, tmp_path):
    text = message(lambda: create_run(run_dir, {}, seeds=0))
    assert text.endswith("already holds a run: continue it with --resume or choose another --out")
    (run_dir / "mine.txt").write_text("kept")
    (run_dir / "checkpoints").mkdir()
    create_run(run_dir, {"a": 1}, seeds=0, extra={"gpu": "none"}, overwrite=True)
    left = sorted(path.name for path in run_dir.iterdir())
    assert left == ["checkpoint", "mine.txt", "run.json"]
    info = open_run(run_dir).info
    assert info["status"] == "running" and info["config"] == {"a": 1} and info["gpu"] == "none"


def test_run_json_says_what_ran(tmp_path):
    run_dir = create_run(tmp_path / "deep" / "run", {"lr": float("inf")}, seeds={"run": 3})
    info = json.loads((run_dir / "run.json").read_text())
    assert info["versions"]["pyarrow"].split(".")[0].isdigit() and info["cpu"] and info["threads"]
    assert info["started"] and info["finished"] is None and info["config"] == {"lr": None}
    set_status(run_dir, "finished", note="x")
    info = open_run(run_dir).info
    assert info["status"] == "finished" and info["finished"] >= info["started"]
    assert info["note"] == "x"
    set_status(run_dir, "running")
    assert open_run(run_dir).info["finished"] is None
    assert "is not a run" in message(lambda: set_status(tmp_path, "finished"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    text = message(lambda: create_run(tmp_path / "file" / "run", {}, seeds=0))
    assert "cannot write" in text and "Not a directory: part of that path is a file" in text
    assert "cannot write /proc/run" in message(lambda: create_run("/proc/run", {}, seeds=0))
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        text = message(lambda: create_run(tmp_path / "locked" / "run", {}, seeds=0))
        assert "Permission denied: make the folder writable" in text
