"""evals.parquet: whole, without duplicates, cut with the run, and read by one door."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from entropy_lab.errors import RunError
from entropy_lab.record import create_run, open_run, rewind, write_evals
from entropy_lab.record import parts as parts_module
from record_rows import eval_rows, uninterrupted

LAST = 20
# DESIGN §6, then what this version adds.
CONTRACT = ["benchmark", "step", "n", "k", "avg_at_k", "pass_at_k", "temperature", "top_p"]
CONTRACT += ["max_tokens", "samples", "entropy", "pass_at_k_se"]
CONTRACT += ["avg_at_k_lo", "avg_at_k_hi", "pass_at_k_lo", "pass_at_k_hi"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = uninterrupted(tmp_path / "run", LAST)
    for step in (0, 8, 21):
        write_evals(path, eval_rows(step))
    return path


def message(action) -> str:
    with pytest.raises(RunError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_frame_has_the_columns_of_the_contract_and_what_was_written(run_dir: Path) -> None:
    frame = open_run(run_dir).evals()
    assert sorted(frame) == sorted(CONTRACT)
    expected = [row for step in (0, 8, 21) for row in eval_rows(step)]
    assert frame.drop(columns="pass_at_k_se").to_dict("records") == [
        {k: v for k, v in row.items() if k != "pass_at_k_se"} for row in expected
    ]
    assert frame["pass_at_k_se"].isna().tolist() == [False, True] * 3
    schema = pq.read_schema(run_dir / "evals.parquet")
    assert schema.field("entropy").metadata[b"unit"] == b"nats"
    assert all(schema.field(name).metadata[b"meaning"] for name in CONTRACT)


def test_rows_are_kept_and_equal_keys_replaced_whatever_the_order(run_dir: Path) -> None:
    write_evals(run_dir, eval_rows(8, mean=0.9))
    write_evals(run_dir, eval_rows(16, "other"))
    write_evals(run_dir, eval_rows(4))
    frame = open_run(run_dir).evals()
    keys = list(zip(frame["benchmark"], frame["step"], frame["k"], strict=True))
    assert keys == [("other", 16, 1), ("other", 16, 2)] + [
        ("sums", step, k) for step in (0, 4, 8, 21) for k in (1, 2)
    ]
    at_8 = frame[frame["step"] == 8]
    assert at_8["avg_at_k"].tolist() == [0.9, 0.9]


def test_equal_rows_give_equal_bytes_however_they_came(run_dir: Path, tmp_path: Path) -> None:
    other = create_run(tmp_path / "other", {}, seeds=0)
    write_evals(other, [*eval_rows(21), *eval_rows(0), *eval_rows(8)])
    assert (other / "evals.parquet").read_bytes() == (run_dir / "evals.parquet").read_bytes()


def test_other_columns_are_refused(run_dir: Path) -> None:
    before = (run_dir / "evals.parquet").read_bytes()
    with pytest.raises(ValueError, match="a row of evals.parquet has the columns .*got"):
        write_evals(run_dir, [{**eval_rows(9)[0], "pass@1": 0.5}])
    with pytest.raises(ValueError, match="a row of evals.parquet has the columns"):
        write_evals(run_dir, [{k: v for k, v in eval_rows(9)[0].items() if k != "entropy"}])
    assert (run_dir / "evals.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("step", "left"), [(-1, [0]), (6, [0]), (7, [0, 8]), (19, [0, 8]), (20, [0, 8, 21])]
)
def test_rewind_keeps_the_policies_up_to_the_one_after_its_step(
    run_dir: Path, tmp_path: Path, step: int, left: list[int]
) -> None:
    rewind(run_dir, step)
    assert sorted(set(open_run(run_dir).evals()["step"])) == left
    plain = create_run(tmp_path / "plain", {}, seeds=0)
    for s in left:
        write_evals(plain, eval_rows(s))
    assert (plain / "evals.parquet").read_bytes() == (run_dir / "evals.parquet").read_bytes()


def test_rewind_to_before_the_first_evaluation_leaves_no_file(tmp_path: Path) -> None:
    run_dir = uninterrupted(tmp_path / "run", LAST)
    write_evals(run_dir, eval_rows(8))
    rewind(run_dir, 6)
    assert not (run_dir / "evals.parquet").exists()
    rewind(run_dir, 5)


def test_readers_end_at_the_last_finished_step(run_dir: Path) -> None:
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))  # step 20 was never committed
    assert sorted(set(open_run(run_dir).evals()["step"])) == [0, 8]
    (run_dir / "metrics.jsonl").write_bytes(b"")
    assert sorted(set(open_run(run_dir).evals()["step"])) == [0]


def test_a_failed_write_leaves_the_file_that_was_there(run_dir: Path, monkeypatch) -> None:
    before = (run_dir / "evals.parquet").read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts_module.os, "write", full)
    text = message(lambda: write_evals(run_dir, eval_rows(9)))
    assert "evals.parquet: No space left on device: free space on that disk" in text
    assert (run_dir / "evals.parquet").read_bytes() == before
    assert not list(run_dir.glob("*.tmp"))


def test_what_cannot_be_read_is_one_line(run_dir: Path, tmp_path: Path) -> None:
    bare = uninterrupted(tmp_path / "bare", 3)
    assert message(lambda: open_run(bare).evals()) == (
        f"{bare} has no evaluations: train with eval.every above 0 and task.held_out_share, for "
        "example 0.1"
    )
    (run_dir / "evals.parquet").write_bytes(b"PAR1")
    for action in (
        lambda: open_run(run_dir).evals(),
        lambda: write_evals(run_dir, eval_rows(9)),
        lambda: rewind(run_dir, 10),
    ):
        assert "evals.parquet is damaged (" in message(action)
    shutil.copy(run_dir / "steps" / "part-00000000-00000002.parquet", run_dir / "evals.parquet")
    assert "evals.parquet is damaged (" in message(lambda: open_run(run_dir).evals())
