"""The writer: what lands on disk is exactly what was handed over, encoded as promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab import record as record_package
from entropy_lab.record import RunWriter, open_run, token_schema
from record_rows import (
    FLOATS,
    SPECIAL,
    files_of,
    is_probed,
    new_run,
    new_writer,
    record,
    sample_columns,
    sorted_columns,
    token_columns,
)

ROOT = Path(record_package.__file__).parents[2]
KEYS = ["step", "micro", "uid", "pos", "token_id", "state", "age", "flags"]


def one_part(tmp_path: Path, n_steps: int = 4, **settings) -> Path:
    run_dir = new_run(tmp_path / "run")
    with RunWriter(run_dir, flush_steps=100, **settings) as writer:
        for step in range(n_steps):
            writer.tokens(token_columns(step))
            writer.commit({"step": step})
    return run_dir


def test_schema_is_the_contract():
    core = [f"dH_pred_{name}" for name in ("cov", "steer", "softmax", "softmax_state")]
    floats = ["advantage", "old_logp", "logp", "entropy", "weight", "grad_logp", "dH"]
    assert token_schema("core").names == KEYS + floats + core
    types = [str(token_schema("core").field(name).type) for name in KEYS]
    assert types == ["int32", "int16", "int64", "int32", "int32", "int64", "uint8", "uint8"]
    assert set(token_schema("core").types[len(KEYS) :]) == {pa.float32()}
    more = ["old_entropy", "rollout_logp", "m0", "m1", "m2", "grad_entropy", "dlogp"]
    more.append("dH_float32")
    rest = ["dH_pred_steer_released", "dH_pred_discriminant"]
    assert token_schema("full").names == KEYS + floats + more + core + rest
    names = token_schema("core", predictors=("head",), extra=("influence",)).names
    assert names == [*KEYS, *floats, "dH_pred_head", "influence"]


def test_every_field_states_unit_and_meaning(tmp_path):
    path = open_run(one_part(tmp_path)).token_files[0]
    for field in pq.read_schema(path):
        assert set(field.metadata) == {b"unit", b"meaning"} and field.metadata[b"meaning"]
    assert pq.read_schema(path).field("dH").metadata[b"unit"] == b"nats"


def test_rows_come_back_bit_for_bit_and_sorted(tmp_path):
    run = open_run(one_part(tmp_path))
    for step in range(4):
        rows, expected = run.tokens(step=step), sorted_columns(step)
        for name in FLOATS:
            bits = rows[name].to_numpy().astype(np.float32).view(np.uint32)
            assert np.array_equal(bits, expected[name].view(np.uint32)), name
        for name in KEYS:
            assert rows[name].tolist() == expected[name].tolist(), name
    assert np.array_equal(token_columns(0)["dH"][:6], SPECIAL, equal_nan=True)


def test_a_float_column_left_out_is_null_and_nan_is_kept(tmp_path):
    run = open_run(one_part(tmp_path))
    table = pq.read_table(run.token_files[0], partitioning="filename")
    assert table["dH_pred_cov"].null_count == table.num_rows
    assert table["dH"].null_count == 0
    assert int(np.isnan(table["dH"].to_numpy()).sum()) == 4  # one planted in each step


def test_columns_of_some_calls_only(tmp_path):
    run_dir = new_run(tmp_path / "run")
    first, second = token_columns(0), token_columns(0)
    second["pos"] = second["pos"] + 1000
    second["x_group"] = np.arange(len(second["pos"]), dtype=np.int64) + 2**40
    del second["weight"]
    with RunWriter(run_dir) as writer:
        writer.tokens(first)
        writer.tokens(second)
        writer.commit({"step": 0})
    rows = open_run(run_dir).tokens()
    late = rows["pos"] >= 1000
    assert rows["weight"].isna().equals(late) and rows["x_group"].notna().equals(late)
    assert sorted(rows["x_group"][late].astype("int64")) == list(second["x_group"])


def test_encodings_compression_and_footer(tmp_path):
    settings = {"profile": "full", "meta": {"temperature": "0.7", "sampling_rule": "rows 1/8"}}
    path = open_run(one_part(tmp_path, **settings)).token_files[0]
    metadata = pq.read_metadata(path)
    group = metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    dictionary = {name for name, c in columns.items() if "RLE_DICTIONARY" in c.encodings}
    assert dictionary == {"micro", "age", "flags", "token_id", "advantage", "weight"}
    for name in ("step", "uid", "pos"):
        assert "DELTA_BINARY_PACKED" in columns[name].encodings
    for name in set(token_schema("full").names) - set(KEYS) - dictionary:
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings, name
    footer = {k.decode(): v.decode() for k, v in metadata.metadata.items()}
    assert footer["entropy_lab.schema_version"] == "1"
    assert footer["entropy_lab.unit"] == "nats"
    assert footer["entropy_lab.temperature"] == "0.7"
    assert footer["entropy_lab.sampling_rule"] == "rows 1/8"
    assert footer["entropy_lab.estimators"].split(",")[-1] == "discriminant"


def test_row_groups_hold_256k_rows(tmp_path):
    n = 300_000
    columns = {name: np.zeros(n, np.int64) for name in KEYS} | {"pos": np.arange(n)}
    run_dir = new_run(tmp_path / "run")
    with RunWriter(run_dir) as writer:
        writer.tokens(columns)
        writer.commit({"step": 0})
    metadata = pq.read_metadata(open_run(run_dir).token_files[0])
    assert [metadata.row_group(i).num_rows for i in range(2)] == [262_144, n - 262_144]


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        with new_writer(new_run(tmp_path / name)) as writer:
            record(writer, 0, 20)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert len(files_of(tmp_path / "a")) > 20


def test_the_caller_may_reuse_its_arrays(tmp_path):
    columns = {
        name: values.astype(np.float32) if name in FLOATS else values
        for name, values in token_columns(0).items()
    }
    run_dir = new_run(tmp_path / "run")
    with RunWriter(run_dir) as writer:
        writer.tokens(columns)
        for values in columns.values():
            values[:] = 0
        writer.commit({"step": 0})
    assert np.array_equal(open_run(run_dir).tokens()["pos"], sorted_columns(0)["pos"])


def test_uncommitted_rows_are_left_out(tmp_path):
    run_dir = new_run(tmp_path / "run")
    with RunWriter(run_dir) as writer:
        writer.samples(sample_columns(1))  # early: it waits for its step
        writer.tokens(token_columns(0))
        writer.commit({"step": 0})
        writer.samples(sample_columns(2))
        writer.tokens(token_columns(1))
    run = open_run(run_dir)
    assert run.steps_probed == [0] and run.last_step == 0
    assert not list((run_dir / "samples").rglob("*.parquet"))


def test_step_table_types_and_unmeasured_values(tmp_path):
    run_dir = new_run(tmp_path / "run")
    with RunWriter(run_dir) as writer:
        writer.step({"lr": np.float64(0.5), "n": np.int64(3), "probed": True, "source": "fixed"})
        writer.commit({"step": 0})
        writer.step({"lr": None, "n": 4, "probed": False, "source": "", "late": 1.5})
        writer.commit({"step": 1})
        writer.commit({"step": 2})
    table = pq.read_table(next((run_dir / "steps").iterdir()))
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert types == {
        "step": "int64",
        "lr": "double",
        "n": "int64",
        "probed": "bool",
        "source": "string",
        "late": "double",
    }
    assert str(table["lr"].to_pylist()) == "[0.5, nan, nan]"
    assert str(table["late"].to_pylist()) == "[nan, 1.5, nan]"
    assert table["n"].to_pylist() == [3, 4, None]


def test_recording_loads_neither_pandas_nor_duckdb():
    code = "import sys, entropy_lab.record; print({'pandas', 'duckdb'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"


def test_probed_steps_only_are_in_tokens(tmp_path):
    run_dir = new_run(tmp_path / "run")
    with new_writer(run_dir) as writer:
        record(writer, 0, 20)
    assert open_run(run_dir).steps_probed == [s for s in range(21) if is_probed(s)]
