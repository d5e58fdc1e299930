"""The writer: when parts end, what tokens_through promises, and how wrong calls are refused."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from entropy_lab.errors import RunError
from entropy_lab.record import RunWriter, open_run, window
from entropy_lab.record.background import BackgroundWriter
from record_rows import (
    new_run,
    new_writer,
    record,
    sample_columns,
    sorted_columns,
    token_columns,
)


def test_parts_are_named_by_their_steps_and_cut_at_flush(tmp_path):
    run_dir = new_run(tmp_path / "run")
    with new_writer(run_dir) as writer:  # windows of 3, checkpoints at 7 and 15
        record(writer, 0, 17)
    names = [path.name for path in sorted((run_dir / "steps").iterdir())]
    spans = [(0, 2), (3, 5), (6, 7), (8, 10), (11, 13), (14, 15), (16, 17)]
    assert names == [f"part-{first:08d}-{last:08d}.parquet" for first, last in spans]
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"


def test_many_rows_end_a_window_early(tmp_path):
    run_dir = new_run(tmp_path / "run")
    rows = [len(token_columns(step)["step"]) for step in range(5)]
    limits = {"flush_steps": 100, "flush_rows": rows[0] + rows[1]}
    with RunWriter(run_dir, **limits, merge=False) as writer:
        for step in range(5):
            writer.tokens(token_columns(step))
            writer.commit({"step": step})
    assert (run_dir / "steps" / "part-00000000-00000001.parquet").exists()


def test_tokens_through_is_durable_and_depends_on_rows_alone(tmp_path, monkeypatch):
    write_table, seen = window.write_table, []

    def slow(table, path):
        if path.parent.name == "steps":
            threading.Event().wait(0.02)
        write_table(table, path)

    for name in ("fast", "slow"):
        with new_writer(new_run(tmp_path / name)) as writer:
            for first in range(18):
                record(writer, first, first)
                through = writer.tokens_through
                done = [int(p.stem[-8:]) for p in (tmp_path / name / "steps").glob("*.parquet")]
                assert through is None or through <= max(done)
        seen.append((tmp_path / name / "metrics.jsonl").read_text())
        monkeypatch.setattr(window, "write_table", slow)
    assert seen[0] == seen[1]
    lines = [json.loads(line) for line in seen[0].splitlines()]
    # windows end at 2, 5, 7 (flush), 10, 13, 15 (flush); a hand-over waits for the one before last
    expected = [None] * 8 + [7] * 8 + [15] * 2
    assert [line["tokens_through"] for line in lines] == expected
    assert lines[0]["dH_train"] is None and lines[3]["reward"] == 3 / 7


def test_tokens_through_advances_without_flush(tmp_path):
    run_dir = new_run(tmp_path / "run")
    with RunWriter(run_dir, flush_steps=2, queue_size=1) as writer:
        for step in range(8):
            writer.commit({"step": step})
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [x["tokens_through"] for x in lines] == [None, None, None, 1, 1, 3, 3, 5]


def test_full_queue_blocks_or_drops_with_a_count(tmp_path, monkeypatch):
    write_table, gate = window.write_table, threading.Event()

    def gated(table, path):
        assert gate.wait(30)
        write_table(table, path)

    monkeypatch.setattr(window, "write_table", gated)
    run_dir = new_run(tmp_path / "run")
    writer = RunWriter(run_dir, flush_steps=1, queue_size=2, on_full="drop")
    for step in range(5):  # two windows are under way, three find no room
        writer.tokens(token_columns(step))
        writer.step({"lr": 1.0})
        writer.commit({"step": step})
    assert writer.dropped_windows == 3
    assert json.loads((run_dir / "run.json").read_text())["dropped_windows"] == 3
    gate.set()
    writer.close()
    run = open_run(run_dir)
    assert run.steps_probed == [0, 1] and run.info["dropped_windows"] == 3
    assert run.steps()["step"].tolist() == [0, 1, 2, 3, 4]

    gate.clear()
    blocked = RunWriter(new_run(tmp_path / "blocked"), flush_steps=1, queue_size=2)
    threading.Timer(0.3, gate.set).start()
    for step in range(5):
        blocked.tokens(token_columns(step))
        blocked.commit({"step": step})
    blocked.close()
    assert open_run(tmp_path / "blocked").steps_probed == [0, 1, 2, 3, 4]


def test_other_ranks_write_rows_only(tmp_path):
    run_dir = new_run(tmp_path / "run")
    zero, one = (RunWriter(run_dir, rank=rank, flush_steps=2) for rank in (0, 1))
    for step in range(4):
        zero.tokens(sorted_columns(step))
        other = token_columns(step)
        one.tokens({**other, "uid": other["uid"] + 100})
        one.step({"lr": 9.0})
        for writer in (zero, one):
            writer.commit({"step": step})
    one.close()
    zero.close()
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 4
    run = open_run(run_dir)
    assert [p.parent.name for p in run.token_files] == ["rank=0000", "rank=0001"]
    rows = run.tokens(step=2)
    assert len(rows) == 2 * len(token_columns(2)["step"])
    assert "rank" not in rows and "rank" not in run.tokens(lazy=True).columns


def bad_call(name: str, writer: RunWriter) -> None:
    columns = token_columns(5)
    if name == "unknown":
        writer.tokens({**columns, "entropi": columns["dH"]})
    elif name == "missing":
        writer.tokens({k: v for k, v in columns.items() if k != "state"})
    elif name == "length":
        writer.tokens({**columns, "dH": columns["dH"][1:]})
    elif name == "range":
        writer.tokens({**columns, "age": np.full(len(columns["dH"]), 256)})
    elif name == "shape":
        writer.tokens({**columns, "dH": columns["dH"][:, None]})
    elif name == "text":
        writer.tokens({**columns, "x_word": np.full(len(columns["dH"]), "a")})
    elif name == "other step":
        writer.tokens(columns)
        writer.commit({"step": 6})
    elif name == "step row":
        writer.step({"step": 7})
        writer.commit({"step": 6})
    elif name == "order":
        writer.commit({"step": 4})
    elif name == "late samples":
        writer.samples(sample_columns(4))
    elif name == "mixed":
        writer.step({"lr": "fast"})
        writer.commit({"step": 5})
        writer.step({"lr": 1.0})
        writer.commit({"step": 6})
        writer.flush()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unknown", "unknown token column 'entropi': did you mean 'entropy'?"),
        ("missing", r"lack the key columns \['state'\]"),
        ("length", "columns differ in length"),
        ("range", "column 'age' holds int64 values 256..256: it must be uint8 within 0..255"),
        ("shape", r"column 'dH' has shape \(\d+, 1\): pass one flat array"),
        ("text", "column 'x_word' holds <U1 values: pass numbers or booleans"),
        ("other step", "commit of step 6, but token rows of steps 5..5"),
        ("step row", r"commit of step 6, but step rows of \[7\]"),
        ("order", "commit of step 4 after step 4: steps must grow"),
        ("late samples", "samples of step 4 come after its commit"),
    ],
)
def test_wrong_calls_say_what_is_wrong(tmp_path, name, text):
    writer = RunWriter(new_run(tmp_path / "run"))
    writer.commit({"step": 4})
    with pytest.raises(ValueError, match=text):
        bad_call(name, writer)
    writer.close()


def test_a_failure_that_is_not_the_disks_surfaces_too(tmp_path):
    writer = RunWriter(new_run(tmp_path / "run"))
    with pytest.raises(RunError, match="log writer failed with ValueError: step column 'lr'"):
        bad_call("mixed", writer)
    writer.close()
    with pytest.raises(RunError, match="is closed"):
        writer.commit({"step": 9})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"flush_steps": 0}, "flush_steps must be at least 1, got 0"),
        ({"on_full": "wait"}, "on_full must be 'block' or 'drop', got 'wait'"),
        ({"on_full": "drop", "rank": 1}, "on_full='drop' is for rank 0"),
        ({"profile": "all"}, "unknown profile 'all': use 'core' or 'full'"),
        ({"extra": ("dH",)}, "token columns occur twice"),
    ],
)
def test_wrong_settings(tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        RunWriter(new_run(tmp_path / "run"), **settings)


def test_close_says_when_the_status_cannot_be_written(tmp_path):
    writer = RunWriter(new_run(tmp_path / "run"))
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RunError, match="is not a run"):
        writer.close()


def test_waiting_ends_when_the_thread_fails():
    background, gate, caught = BackgroundWriter(), threading.Event(), []

    def fail() -> None:
        assert gate.wait(30)
        raise RunError("the disk is full")

    def wait() -> None:
        try:
            background.wait(background.submit(fail))
        except RunError as error:
            caught.append(str(error))

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    gate.set()
    waiter.join(10)
    background.stop()
    assert caught == ["the disk is full"]
