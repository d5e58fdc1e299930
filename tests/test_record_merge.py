"""Merging parts: the same rows in fewer files, once each, whenever the process is killed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from entropy_lab.errors import RunError
from entropy_lab.record import RunWriter, merge, open_run, rewind
from entropy_lab.record.manifest import read_info
from entropy_lab.record.merge import merge_parts
from record_rows import check_rows, files_of, new_run, new_writer, record, uninterrupted

LAST = 25
KINDS = ("steps", "tokens", "samples")


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A finished run of many small parts."""
    return uninterrupted(tmp_path_factory.mktemp("parts") / "run", LAST)


def copied(source: Path, path: Path) -> Path:
    return Path(shutil.copytree(source, path))


def sizes(run_dir: Path) -> dict[str, int]:
    return {kind: len(list((run_dir / kind).rglob("*.parquet"))) for kind in KINDS}


def assert_equal_frames(left: Path, right: Path) -> None:
    a, b = open_run(left), open_run(right)
    for kind in KINDS:
        assert getattr(a, kind)().equals(getattr(b, kind)()), kind
    assert not a.damaged


def assert_same_rows(left: Path, right: Path) -> None:
    assert_equal_frames(left, right)
    a, b = open_run(left), open_run(right)
    for kind in KINDS:
        ours, theirs = (getattr(r, kind)(lazy=True).order("ALL").df() for r in (a, b))
        assert ours[theirs.columns].equals(theirs), kind
    assert a.metrics().equals(b.metrics()) and a.meta == b.meta
    assert a.steps_probed == b.steps_probed
    for (step, rows), (other, expected) in zip(a.iter_steps(), b.iter_steps(), strict=True):
        assert step == other and rows.to_pandas().equals(expected.to_pandas())


def test_a_finished_run_is_one_file_of_each_kind_with_the_same_rows(tmp_path, parts):
    assert min(sizes(parts).values()) > 8
    with new_writer(new_run(tmp_path / "run"), merge=True) as writer:
        record(writer, 0, LAST)
    assert sizes(tmp_path / "run") == dict.fromkeys(KINDS, 1)
    assert_same_rows(tmp_path / "run", parts)
    check_rows(tmp_path / "run", LAST)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_run_that_did_not_finish_keeps_its_parts(tmp_path):
    writer = new_writer(new_run(tmp_path / "run"), merge=True)
    record(writer, 0, 12)
    writer.close("interrupted")
    assert min(sizes(tmp_path / "run").values()) > 3


class Killed(BaseException):
    """Stands for the process ending at this very call."""


def test_killed_at_any_call_every_row_is_there_once(tmp_path, monkeypatch):
    parts = uninterrupted(tmp_path / "parts", 11)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # only its place among the calls matters
    goal = copied(parts, tmp_path / "goal")
    merge_parts(goal)
    seen_twice = False
    for calls in range(200):
        run_dir = copied(parts, tmp_path / f"run{calls}")
        budget = [calls]

        def limited(inner, budget=budget):
            def call(*args, **kwargs):
                if budget[0] == 0:
                    raise Killed
                budget[0] -= 1
                return inner(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "fsync"):
                patch.setattr(os, name, limited(getattr(os, name)))
            patch.setattr(Path, "unlink", limited(Path.unlink))
            patch.setattr(pq.ParquetWriter, "write_table", limited(pq.ParquetWriter.write_table))
            try:
                merge_parts(run_dir)
                finished = True
            except Killed:
                finished = False
        names = {p.name for p in (run_dir / "steps").iterdir()}
        seen_twice |= "part-00000000-00000011.parquet" in names and len(names) > 1
        assert_equal_frames(run_dir, parts)
        merge_parts(run_dir)  # what a resume does
        for leftover in run_dir.rglob("*.tmp"):
            leftover.unlink()
        assert files_of(run_dir) == files_of(goal)
        if finished:
            break
    assert finished and calls > 25 and seen_twice


@pytest.mark.parametrize("step", [5, 20, LAST - 1])
def test_a_run_killed_between_rename_and_removal_can_be_rewound(tmp_path, parts, step):
    run_dir, goal = copied(parts, tmp_path / "run"), copied(parts, tmp_path / "goal")
    merge_parts(goal)
    for path in goal.rglob("part-*"):
        shutil.copy(path, run_dir / path.relative_to(goal))
    assert_same_rows(run_dir, parts)
    rewind(run_dir, step)
    check_rows(run_dir, step)
    assert open_run(run_dir).steps()["step"].tolist() == [*range(step + 1)]
    with new_writer(run_dir, merge=True) as writer:
        record(writer, step + 1, LAST)
    assert sizes(run_dir) == dict.fromkeys(KINDS, 1)
    left, right = open_run(run_dir), open_run(parts)
    for kind in KINDS:
        assert getattr(left, kind)().equals(getattr(right, kind)()), kind


def test_files_grow_to_the_limit_and_no_further(tmp_path, parts):
    run_dir = copied(parts, tmp_path / "run")
    limit = 60_000
    merge_parts(run_dir, limit=limit)
    tokens = sorted((run_dir / "tokens").rglob("*.parquet"))
    assert 2 < len(tokens) < sizes(parts)["tokens"]
    assert all(limit / 2 < path.stat().st_size <= limit for path in tokens[:-1])
    assert_same_rows(run_dir, parts)
    merge_parts(run_dir, limit=limit)
    assert sorted((run_dir / "tokens").rglob("*.parquet")) == tokens  # nothing is left to do


def test_memory_holds_a_row_group_at_a_time(tmp_path, parts, monkeypatch):
    run_dir = copied(parts, tmp_path / "run")
    monkeypatch.setattr(merge, "ROW_GROUP_ROWS", 500)
    merge_parts(run_dir)
    [path] = (run_dir / "tokens").rglob("*.parquet")
    found = pq.read_metadata(path)
    rows = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
    assert len(rows) > 4 and {*rows[:-1]} == {500} and 0 < rows[-1] <= 500
    assert_same_rows(run_dir, parts)


def test_damaged_parts_and_other_footers_stay_as_they_are(tmp_path):
    run_dir = uninterrupted(tmp_path / "run", LAST)
    tokens = sorted((run_dir / "tokens" / "rank=0000").iterdir())
    no_footer, bad_data = tokens[3], tokens[8]
    no_footer.write_bytes(b"PAR1")
    data = bytearray(bad_data.read_bytes())
    data[200:260] = bytes(60)
    bad_data.write_bytes(data)
    merge_parts(run_dir)
    left = sorted((run_dir / "tokens" / "rank=0000").iterdir())
    assert no_footer in left and bad_data in left and len(left) < len(tokens)
    assert [path for path, _ in open_run(run_dir).damaged] == [no_footer]
    with pytest.raises(RunError, match=f"{bad_data.name} is damaged"):
        open_run(run_dir).tokens()
    assert sizes(run_dir)["steps"] == 1

    other = new_run(tmp_path / "other")
    for first, meta in ((0, {"temperature": "0.7"}), (9, {"temperature": "1.0"})):
        with RunWriter(other, flush_steps=3, meta=meta) as writer:
            record(writer, first, first + 8)
    found = sorted((other / "steps").iterdir())
    assert [p.name for p in found] == [
        "part-00000000-00000008.parquet", "part-00000009-00000017.parquet"
    ]  # fmt: skip
    footers = [pq.read_schema(p).metadata[b"entropy_lab.temperature"] for p in found]
    assert footers == [b"0.7", b"1.0"]


def test_a_reader_that_was_there_before_is_told_to_open_again(tmp_path, parts):
    run_dir = copied(parts, tmp_path / "run")
    before, early = open_run(run_dir), open_run(run_dir)
    assert before.token_files
    merge_parts(run_dir)
    with pytest.raises(RunError, match="is gone: the run has merged its parts .*open the "):
        before.tokens()
    assert early.tokens().equals(open_run(parts).tokens())  # it had listed nothing yet


def test_a_disk_that_refuses_leaves_the_parts_and_says_so(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = new_writer(new_run(tmp_path / "run"), merge=True)
    record(writer, 0, LAST)
    writer.flush()
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    writer.close()
    info = read_info(tmp_path / "run")
    assert info["status"] == "finished"
    assert "No space left on device: free space" in info["merge_error"]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    check_rows(tmp_path / "run", LAST)
