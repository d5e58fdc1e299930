"""Reading: frames, lazy relations, one step at a time."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from entropy_lab.errors import RunError
from entropy_lab.record import RunWriter, create_run, dataset, metrics, open_run, schema
from record_rows import (
    FLOATS,
    is_probed,
    new_writer,
    record,
    sample_columns,
    sorted_columns,
    token_columns,
)

LAST = 20
PROBED = [step for step in range(LAST + 1) if is_probed(step)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run_dir = create_run(tmp_path_factory.mktemp("record") / "run", {}, seeds={"run": 1})
    with new_writer(run_dir) as writer:
        record(writer, 0, LAST)
        writer.fixed({"uid": np.arange(3), "entropy": np.ones(3, np.float32)})
    return run_dir


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def expected(steps: list[int]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(sorted_columns(step)) for step in steps], ignore_index=True)


def test_frames_hold_everything(run_dir):
    run = open_run(run_dir)
    pd.testing.assert_frame_equal(
        run.tokens(columns=["step", "pos", *FLOATS]),
        expected(PROBED)[["step", "pos", *FLOATS]],
        check_dtype=False,
        check_exact=True,
    )
    assert run.steps()["lr"].tolist() == [0.1 * step for step in range(LAST + 1)]
    assert run.steps()["dH_train"].isna().all()
    metrics = run.metrics()
    assert metrics["reward"].tolist() == [step / 7 for step in range(LAST + 1)]
    assert metrics["dH_train"].dtype == np.float64 and run.last_step == LAST
    rollouts = range(0, LAST + 1, 2)
    samples = run.samples()
    assert samples["response"].tolist() == [
        text for step in rollouts for text in sample_columns(step)["response"]
    ]
    assert samples["reward"].dtype == np.float32 and samples["length"].isna().all()
    assert run.fixed()["uid"].tolist() == [0, 1, 2]
    assert run.info["seeds"] == {"run": 1} and run.damaged == []
    assert run.meta["temperature"] == "0.7" and run.meta["unit"] == "nats"


def test_chosen_steps_and_columns(run_dir):
    run = open_run(run_dir)
    assert run.tokens(step=4, columns=["uid"])["uid"].tolist() == sorted_columns(4)["uid"].tolist()
    some = run.tokens(step=[13, 4], columns=["pos", "dH"])
    assert list(some) == ["pos", "dH"]
    assert some["pos"].tolist() == expected([4, 13])["pos"].tolist()


def test_relations_stay_lazy_and_outlive_the_run(run_dir):
    lazy = open_run(run_dir).tokens(lazy=True)
    gc.collect()
    total = lazy.aggregate("count(*) AS n, sum(pos) AS pos").fetchall()[0]
    assert total == (len(expected(PROBED)), int(expected(PROBED)["pos"].sum()))
    run = open_run(run_dir)
    part = run.tokens(step=[4, 6], columns=["step", "entropy"], lazy=True)
    assert part.columns == ["step", "entropy"]
    frame = part.df().sort_values(["step", "entropy"], ignore_index=True)
    other = run.tokens(step=[4, 6], columns=["step", "entropy"])
    pd.testing.assert_frame_equal(frame, other.sort_values(["step", "entropy"], ignore_index=True))
    assert run.steps(lazy=True).aggregate("max(step)").fetchall() == [(LAST,)]
    assert run.samples(columns=["prompt"], lazy=True).columns == ["prompt"]


def test_one_step_at_a_time(run_dir):
    seen = list(open_run(run_dir).iter_steps(["dH", "pos"]))
    assert [step for step, _ in seen] == PROBED
    for step, table in seen:
        assert table.column_names == ["dH", "pos"]
        bits = table["dH"].to_numpy().view(np.uint32)
        assert np.array_equal(bits, sorted_columns(step)["dH"].view(np.uint32))


def test_only_the_row_groups_of_a_step_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "ROW_GROUP_ROWS", 50)
    run_dir = create_run(tmp_path / "run", {}, seeds=0)
    with RunWriter(run_dir, flush_steps=100) as writer:
        for step in range(6):
            writer.tokens(token_columns(step))
            writer.commit({"step": step})
    read, inner = [], dataset._read
    monkeypatch.setattr(
        dataset, "_read", lambda span, names: read.append(span) or inner(span, names)
    )
    run = open_run(run_dir)
    assert run.steps_probed == list(range(6))
    read.clear()
    assert run.tokens(step=2)["pos"].tolist() == sorted_columns(2)["pos"].tolist()
    spans = run._datasets["tokens"].spans
    assert read == [s for s in spans if s.first <= 2 <= s.last] and len(read) < len(spans) / 2
    read.clear()
    for step, table in run.iter_steps(["pos"]):
        assert table["pos"].to_pylist() == sorted_columns(step)["pos"].tolist()
    assert read == spans  # every group once, in order


def test_a_column_that_some_parts_lack_is_null_there(tmp_path):
    run_dir = create_run(tmp_path / "run", {}, seeds=0)
    with RunWriter(run_dir, flush_steps=1) as writer:
        for step in range(3):
            columns = token_columns(step)
            columns.pop("x_mine")
            if step == 1:
                columns["x_new"] = np.full(len(columns["pos"]), 5)
            writer.tokens(columns)
            writer.step({"n": step if step else 0.5, **({"late": 1.0} if step else {})})
            writer.commit({"step": step})
    run = open_run(run_dir)
    for rows in (run.tokens(), run.tokens(lazy=True).df(), run.tokens(step=[0, 1])):
        assert rows["x_new"].notna().equals(rows["step"] == 1)
    assert "x_new" in run.tokens(step=0, lazy=True).columns
    assert run.steps()["n"].tolist() == [0.5, 1.0, 2.0]
    assert run.steps()["late"].isna().tolist() == [True, False, False]
    assert run.columns()[-1] == "x_new"


def test_a_running_run_ends_at_its_last_whole_line(run_dir):
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_bytes(b"".join(lines[:13]) + lines[13][:20])
    part = next((run_dir / "tokens" / "rank=0000").iterdir())
    (part.parent / "part-00000099-00000100.parquet.tmp").write_bytes(b"PAR1")
    run = open_run(run_dir)
    assert run.last_step == 12 and len(run.metrics()) == 13
    assert run.steps_probed == [step for step in PROBED if step <= 12]
    assert run.tokens()["step"].max() == run.tokens(lazy=True).df()["step"].max() == 12
    assert run.steps()["step"].max() == 12 and run.samples()["step"].max() == 12
    assert [step for step, _ in run.iter_steps(["step"])][-1] == 12
    assert all(int(path.name[5:13]) <= 12 for path in run.token_files)


@pytest.mark.parametrize("content", ["", "PAR1", "half"])
def test_a_damaged_part_is_named_and_skipped(run_dir, content):
    path = open_run(run_dir).token_files[1]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if content == "half" else content.encode())
    run = open_run(run_dir)
    assert [file for file, _ in run.damaged] == [path] and "\n" not in run.damaged[0][1]
    gone = range(int(path.name[5:13]), int(path.name[14:22]) + 1)
    assert run.steps_probed == [step for step in PROBED if step not in gone]
    assert len(run.tokens()) == len(run.tokens(lazy=True)) == len(expected(run.steps_probed))


def test_damage_inside_a_part_is_found_when_it_is_read(run_dir):
    path = open_run(run_dir).token_files[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 255
    path.write_bytes(data)
    run = open_run(run_dir)
    with pytest.raises(RunError, match=f"{path.name} is damaged .*: move it out of the run"):
        run.tokens()


def test_a_part_without_step_and_a_bad_line_are_reported(run_dir):
    path = open_run(run_dir).token_files[0]
    pd.DataFrame({"a": [1]}).to_parquet(path)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    lines[2] = "{oops"
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = open_run(run_dir)
    assert run.damaged == [
        (path, "it has no column 'step'"),
        (run_dir / "metrics.jsonl", "line 3 is no JSON"),
    ]
    assert len(run.metrics()) == LAST


def test_the_last_lines_are_those_of_the_whole_log(tmp_path, monkeypatch):
    assert metrics.last_metrics(tmp_path, 3) == []
    lines = [{"step": n, "text": "x" * (n % 37)} for n in range(50)]
    log = tmp_path / "metrics.jsonl"
    for block in (7, 64, 1 << 16):
        monkeypatch.setattr(metrics, "_BLOCK", block)
        for count in (1, 2, 49, 50, 80):
            log.write_text("".join(json.dumps(line) + "\n" for line in lines))
            assert metrics.last_metrics(tmp_path, count) == lines[-count:]
            with log.open("a") as file:
                file.write('{"step": 50, "te')  # torn
            assert metrics.last_metrics(tmp_path, count) == lines[-count:]
