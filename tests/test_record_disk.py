"""Full disks and interrupts: one clear error, and what was written stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading

import pytest

from entropy_lab.errors import RunError
from entropy_lab.record import RunWriter, create_run, open_run, parts, rewind, window
from record_rows import (
    check_rows,
    files_of,
    new_writer,
    record,
    start_child,
    token_columns,
    uninterrupted,
)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch, call):
    run_dir = create_run(tmp_path / "run", {}, seeds=0)
    writer = new_writer(run_dir)
    record(writer, 0, 7)
    before = files_of(run_dir)
    inner = getattr(os, call)

    def full(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return inner(*args, **kwargs)

    monkeypatch.setattr(os, call, full)
    text = r"^cannot write \S*part-00000008-00000010.parquet: No space left on device: free space"
    with pytest.raises(RunError, match=text) as first:
        record(writer, 8, 40)
    with pytest.raises(RunError) as again:
        writer.tokens(token_columns(41))
    assert again.value is first.value
    writer.close()  # was told already: silent, and does not wait for what can never be written
    monkeypatch.setattr(os, call, inner)
    after = files_of(run_dir)
    assert {name: after[name] for name in before if name != "metrics.jsonl"} == {
        name: data for name, data in before.items() if name != "metrics.jsonl"
    }
    assert after["metrics.jsonl"].startswith(before["metrics.jsonl"])
    assert after.keys() == before.keys()  # nothing half-written, no .tmp
    assert open_run(run_dir).info["status"] == "failed"
    check_rows(run_dir, 7)
    rewind(run_dir, 7)
    with new_writer(run_dir) as writer:
        record(writer, 8, 20)
    assert files_of(run_dir) == files_of(uninterrupted(tmp_path / "whole", 20))


def test_an_error_that_nobody_has_seen_is_raised_by_close(tmp_path, monkeypatch):
    writer = new_writer(create_run(tmp_path / "run", {}, seeds=0))
    record(writer, 0, 1)
    (tmp_path / "run" / "steps").rmdir()
    (tmp_path / "run" / "steps").write_text("in the way")
    with pytest.raises(RunError, match="cannot write .*steps/part-00000000-00000001.parquet: Not"):
        writer.close()
    writer.close()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_a_metrics_line_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    run_dir = create_run(tmp_path / "run", {}, seeds=0)
    writer = new_writer(run_dir)
    record(writer, 0, 1)
    before, inner = (run_dir / "metrics.jsonl").read_bytes(), os.write
    sizes = iter([5])

    def nearly_full(fd, data):
        for size in sizes:
            return inner(fd, data[:size])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(RunError, match="cannot write .*metrics.jsonl: No space left on device"):
        record(writer, 2, 2)
    monkeypatch.setattr(os, "write", inner)
    writer.close()
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_a_real_file_size_limit_ends_with_one_line(tmp_path):
    run_dir = tmp_path / "run"
    child = start_child(run_dir, 100, 12_000)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1
    assert errors.count("\n") == 1 and errors.startswith("Error: cannot write ")
    assert str(run_dir) in errors and "File too large: raise the file size limit" in errors
    assert not list(run_dir.rglob("*.tmp"))
    check_rows(run_dir, open_run(run_dir)._log.lines[-1]["tokens_through"])
    assert open_run(run_dir).info["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (ZeroDivisionError, "failed")]
)
def test_leaving_by_an_exception_keeps_the_committed_steps(tmp_path, error, status):
    run_dir = create_run(tmp_path / "run", {}, seeds=0)
    with pytest.raises(error), new_writer(run_dir) as writer:
        record(writer, 0, 10)
        writer.tokens(token_columns(11))
        raise error
    assert open_run(run_dir).info["status"] == status
    check_rows(run_dir, 10)
    assert open_run(run_dir).last_step == 10


def test_a_write_error_does_not_hide_the_exception_under_way(tmp_path, monkeypatch):
    run_dir = create_run(tmp_path / "run", {}, seeds=0)
    writer = new_writer(run_dir)
    with pytest.raises(ZeroDivisionError) as caught, writer:
        record(writer, 0, 1)
        shutil.rmtree(run_dir / "steps")
        raise ZeroDivisionError
    assert "cannot write" in caught.value.__notes__[0]


def test_ctrl_c_while_waiting_for_the_disk(tmp_path, monkeypatch):
    gate, inner = threading.Event(), window.write_table

    def gated(table, path):
        assert gate.wait(30)
        inner(table, path)

    monkeypatch.setattr(window, "write_table", gated)
    writer = RunWriter(create_run(tmp_path / "run", {}, seeds=0), flush_steps=1, queue_size=1)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for step in range(5):
            writer.tokens(token_columns(step))
            writer.commit({"step": step})
    timer.join()
    gate.set()
    writer.close("interrupted")
    run = open_run(tmp_path / "run")
    assert run.last_step == 0 and run.steps_probed == [0]
    assert run.info["status"] == "interrupted"


def test_a_tmp_is_never_left_by_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "file"
    parts.write_file(path, b"old")

    def refuse(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="file: .*: free some of the disk quota"):
        parts.write_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
