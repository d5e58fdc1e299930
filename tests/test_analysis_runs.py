"""What `analyze` makes of runs that are short, damaged or several, and what it says about them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from entropy_lab.analysis import analyze, influence, read_tables, reduce, side
from entropy_lab.errors import RunError
from entropy_lab.record import create_run, open_run
from planted import unmerged
from synthetic import write_run


def test_a_run_without_token_rows_still_has_curves_and_says_what_to_record(
    tmp_path: Path,
) -> None:
    write_run(tmp_path / "run", probed=False, steps=6)
    found = analyze([tmp_path / "run"])
    assert len(found.tables["curves"]) == 6
    assert found.tables["validation"].empty
    assert any("probe.enabled = true" in t for t in found.tables["warnings"]["text"])
    data = found.to_json()
    assert isinstance(data, dict) and data["predictors"] == {} and data["tokens"] == 0


def test_a_short_run_says_that_its_numbers_are_rough(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=3)
    texts = list(analyze([tmp_path / "run"]).tables["warnings"]["text"])
    assert any("no probed step >= 5" in t for t in texts)
    assert any("only 3 probed steps" in t for t in texts)


def test_an_empty_run_and_a_folder_that_is_no_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run: it has no run.json"):
        analyze([tmp_path])
    create_run(tmp_path / "empty", {}, seeds=0)
    with pytest.raises(RunError, match="holds no finished step"):
        analyze([tmp_path / "empty"])
    with pytest.raises(RunError, match="name at least one run"):
        analyze([])


def test_a_damaged_part_is_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with unmerged():
        write_run(path, steps=16, flush_steps=4)
    part = sorted((path / "tokens").rglob("*.parquet"))[-1]
    part.write_bytes(part.read_bytes()[:1000])
    found = analyze([path])
    assert any(part.name in t and "damaged" in t for t in found.tables["warnings"]["text"])
    assert found.tables["summary"]["probed_steps"].item() == 12
    assert open_run(path).damaged


def test_a_large_gradient_audit_and_dropped_windows_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_run(path, steps=12, audit=2e-2)
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "dropped_windows": 3, "status": "running"}))
    texts = " ".join(analyze([path]).tables["warnings"]["text"])
    assert "gradient audit 2.0e-02 is above 1e-03" in texts
    assert "3 windows of token rows were dropped" in texts
    assert "the run is 'running': analyzed up to step 11" in texts


def test_tables_do_not_depend_on_threads_or_on_when_groups_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    write_run(path, steps=44, deep_every=4, floor=1e-5)
    found = {}
    for threads, merged in ((1, 10**9), (3, 10**9), (3, side.MERGED_STEPS)):
        monkeypatch.setattr(pa, "cpu_count", lambda n=threads: n)
        monkeypatch.setattr(side, "MERGED_STEPS", merged)
        found[threads, merged] = analyze([path], tmp_path / "out").tables
    one, several, small = found.values()
    for name, table in one.items():
        pd.testing.assert_frame_equal(several[name], table)
        pd.testing.assert_frame_equal(small[name], table, rtol=1e-9)


def test_rank_correlations_of_a_huge_step_are_those_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", steps=8, groups=32, length=24)
    exact, sampled = [], []
    for rows, out in ((10**9, exact), (500, sampled)):  # 3072 rows a step
        monkeypatch.setattr(reduce, "RANKED_ROWS", rows)
        data = analyze([tmp_path / "run"]).tables["validation_steps"]
        out += list(data.query("stratum == 'all' and predictor == 'steer'")["srcc"])
    assert exact != sampled
    np.testing.assert_allclose(sampled, exact, atol=4 / np.sqrt(500))


def test_ranks_of_scores_are_those_of_a_sample_in_a_huge_deep_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", steps=8, groups=32, length=24, deep_every=1, held_out=False)
    exact = analyze([tmp_path / "run"]).tables["influence"]
    monkeypatch.setattr(influence, "RANKED_ROWS", 500)
    sampled = analyze([tmp_path / "run"]).tables["influence"]
    assert (exact["srcc"] != sampled["srcc"]).any()
    np.testing.assert_allclose(sampled["srcc"], exact["srcc"], atol=4 / np.sqrt(500))
    rest = [c for c in exact if not c.startswith("srcc")]
    pd.testing.assert_frame_equal(exact[rest], sampled[rest])


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the analysis"):
        analyze([tmp_path / "run"], tmp_path / "file" / "below")


def test_reading_tables_names_the_command_that_makes_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=2)
    with pytest.raises(RunError, match="run `entropy-lab analyze .*run` first"):
        read_tables([tmp_path / "run"], ["validation"])
    with pytest.raises(RunError, match="is not a directory"):
        read_tables([tmp_path / "nowhere"], ["validation"])
    with pytest.raises(RunError, match="has no validation.parquet"):
        read_tables([tmp_path], ["validation"])
    (tmp_path / "validation.parquet").write_bytes(b"broken")
    with pytest.raises(RunError, match="is damaged"):
        read_tables([tmp_path], ["validation"])
    pd.DataFrame({"run": ["a"]}).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(RunError, match="has no column 'scope': another version made it"):
        read_tables([tmp_path], ["validation"])


def test_several_runs_are_compared_per_run_and_per_method(tmp_path: Path) -> None:
    ends = {"a": 0.10, "b": 0.20, "c": 0.40}
    for seed, (name, end) in enumerate(ends.items()):
        method = "steer" if name == "c" else "grpo"
        write_run(tmp_path / name, steps=10, method=method, entropy=(0.5, end), seed=seed)
    found = analyze([tmp_path / name for name in ends])
    assert found.out == tmp_path / "comparison"
    rows = found.tables["comparison"].query("metric == 'entropy'")
    runs = rows[rows["level"] == "run"].set_index("name")
    line = np.linspace(0.5, 0.1, 10)
    assert runs.loc["a", "change"] == pytest.approx(line[-5:].mean() - line[:5].mean())
    methods = rows[rows["level"] == "method"].set_index("name")
    low, high = stats.t.interval(
        0.95, 1, runs.loc[["a", "b"], "change"].mean(), stats.sem(runs.loc[["a", "b"], "change"])
    )
    assert methods.loc["grpo", "change_lo"] == pytest.approx(low)
    assert methods.loc["grpo", "change_hi"] == pytest.approx(high)
    assert methods.loc["grpo", "runs"] == 2
    assert math.isnan(methods.loc["steer", "change_lo"])  # one run carries no interval
    assert [d["run"] for d in found.to_json()["runs"]] == list(ends)
    # The folder of an earlier comparison may be named again, as `runs/*` does.
    again = analyze([*(tmp_path / n for n in ends), tmp_path / "comparison"])
    assert again.runs == list(ends)


def test_runs_of_equal_name_keep_different_labels(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_run(tmp_path / folder / "demo", steps=2)
    found = analyze([tmp_path / "x" / "demo", tmp_path / "y" / "demo"])
    assert found.runs == ["x/demo", "y/demo"]
