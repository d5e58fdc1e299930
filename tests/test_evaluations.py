"""pass@k of evaluated runs beside their entropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from entropy_lab.analysis import analyze
from entropy_lab.report.methods import passes
from synthetic import write_run


def evaluate(path: Path, scores: dict[int, float], **changes: object) -> None:
    """evals.parquet with avg@8 and pass@8 of one benchmark at the given steps."""
    rows = [
        {"benchmark": "held out", "step": step, "n": 8, "k": 8, "avg_at_k": score,
         "pass_at_k": score + 0.1, "temperature": 1.0, "top_p": 1.0, "max_tokens": 12, **changes}
        for step, score in scores.items()
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(path / "evals.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evals")
    for name, method, last in (("a", "grpo", 0.1), ("b", "grpo", 0.2), ("c", "steer", 0.4)):
        write_run(folder / name, method=method, steps=41, probed=False, entropy=(0.5, last),
                  seed=ord(name))  # fmt: skip
    evaluate(folder / "a", {0: 0.3, 20: 0.4, 41: 0.5})
    evaluate(folder / "b", {0: 0.3, 20: 0.5})
    return folder


def test_a_run_shows_its_scores_at_the_entropy_of_the_evaluated_policy(folder: Path) -> None:
    table = analyze([folder / "a"]).tables["pass_at_k"]
    assert list(table["step"]) == [0, 20, 41]
    np.testing.assert_allclose(table["avg_at_k"], [0.3, 0.4, 0.5])
    # A line from 0.5 to 0.1 over steps 0..40; its running mean ends with steps 36..40.
    np.testing.assert_allclose(table["train_entropy"], [0.48, 0.3, 0.12], atol=1e-6)
    assert table["entropy"].isna().all() and table["samples"].isna().all()  # not in the file
    assert set(table["level"]) == {"run"} and set(table["name"]) == {"a"}


def test_a_method_shows_the_mean_of_the_runs_that_were_evaluated(folder: Path) -> None:
    found = analyze([folder / name for name in "abc"])
    table = found.tables["pass_at_k"].query("level == 'method'").set_index("step")
    assert set(table["method"]) == {"grpo"} and list(table["seeds"]) == [2, 2, 1]
    assert table.loc[20, "pass_at_k"] == pytest.approx(0.55)
    assert table.loc[20, "pass_at_k_lo"] < 0.5 and table.loc[20, "pass_at_k_hi"] > 0.6
    assert table.loc[0, "avg_at_k_lo"] == pytest.approx(0.3)  # both alike
    assert np.isnan(table.loc[41, "avg_at_k_lo"]) and table.loc[41, "avg_at_k"] == 0.5
    assert table.loc[20, "train_entropy"] == pytest.approx((0.3 + 0.35) / 2)
    assert len(found.to_json()["pass_at_k"]) == 5 + 3


def test_the_entropy_of_the_evaluated_responses_is_taken_where_it_is_logged(
    tmp_path: Path,
) -> None:
    for name, entropy in (("a", 0.7), ("b", 0.5)):
        write_run(tmp_path / name, steps=3, probed=False, seed=ord(name))
        evaluate(tmp_path / name, {0: 0.2, 3: 0.4}, entropy=entropy, samples=64, pass_at_k_se=0.03)
    alone = analyze([tmp_path / "a"])
    assert set(alone.tables["pass_at_k"]["entropy"]) == {0.7}
    assert set(alone.tables["pass_at_k"]["pass_at_k_se"]) == {0.03}
    both = analyze([tmp_path / "a", tmp_path / "b"])
    rows = both.tables["pass_at_k"].query("level == 'method'")
    assert list(rows["entropy"]) == pytest.approx([0.6, 0.6]) and set(rows["samples"]) == {64}
    assert (rows["entropy_lo"] < 0.5).all() and (rows["entropy_hi"] > 0.7).all()
    last, _, earlier = passes(both.tables).partition("Earlier evaluations")
    assert "<td>3</td>" in last and "<td>0.4</td>" not in earlier and "64 each, T 1" in last


def test_two_samplings_stay_apart_and_a_second_evaluation_is_no_second_seed(
    folder: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", steps=3, probed=False)
    write_run(tmp_path / "b", steps=3, probed=False, seed=1)
    evaluate(tmp_path / "a", {2: 0.2})
    both = [
        pd.read_parquet(tmp_path / "a" / "evals.parquet").assign(avg_at_k=s) for s in (0.2, 0.4)
    ]
    warm = both[0].assign(temperature=0.6)
    pd.concat([*both, warm]).to_parquet(tmp_path / "a" / "evals.parquet")
    table = analyze([tmp_path / "a", tmp_path / "b"]).tables["pass_at_k"]
    rows = table[table["level"] == "method"].set_index("temperature")
    assert list(rows["seeds"]) == [1, 1]
    assert rows.loc[1.0, "avg_at_k"] == pytest.approx(0.3)
    assert rows.loc[0.6, "avg_at_k"] == pytest.approx(0.2)


def test_a_run_without_evaluations_has_no_rows_and_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_run(path, steps=3, probed=False)
    assert analyze([path]).tables["pass_at_k"].empty
    (path / "evals.parquet").write_bytes(b"broken")
    found = analyze([path])
    assert found.tables["pass_at_k"].empty
    assert found.tables["warnings"]["text"].str.contains("skipped evals.parquet: damaged").any()
    pd.DataFrame({"benchmark": ["x"]}).to_parquet(path / "evals.parquet")
    texts = analyze([path]).tables["warnings"]["text"]
    assert texts.str.contains("skipped evals.parquet: it has no column 'step'").any()
