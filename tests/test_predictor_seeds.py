"""The forms over seeds: means over the runs of a method, seeds as the unit of the interval."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from entropy_lab.analysis.predictor_seeds import predictor_seeds
from entropy_lab.analysis.seeds import stratified
from entropy_lab.analysis.tables import TABLES
from entropy_lab.report.text import _predictor_seeds

PCC = [0.50, 0.54, 0.46, 0.58, 0.52]


def row(run: str, predictor: str, pcc: float, **more: object) -> dict[str, object]:
    scope = {"scope": "within_step", "stratum": "all"}
    measures = {"pcc": pcc, "srcc": pcc / 2, "sign": 0.6}
    return {"run": run, "predictor": predictor, "n": 100, **scope, **measures, **more}


def tables() -> pd.DataFrame:
    rows = [row(f"a{i}", "cov", p) for i, p in enumerate(PCC)]
    rows += [row(f"a{i}", "cov", 0.9, scope="pooled") for i in range(5)]
    rows += [row(f"a{i}", "cov", 0.9, stratum="zero") for i in range(5)]
    rows += [row("a0", "jvp", 0.99), row("a3", "jvp", 0.97), row("b0", "cov", 0.1)]
    found = {f"a{i}": "grpo" for i in range(5)} | {"b0": "steer"}
    marginal = pd.DataFrame(
        [
            {"run": "b0", "target": target, "kind": "form", "predictor": "cov", "n": 7,
             "pcc": pcc, "srcc": 0.5, "sign": 0.7}
            for target, pcc in (("dH", 0.2), ("influence_marginal", 0.3))
        ]
    )  # fmt: skip
    draws = stratified({"grpo": 5, "steer": 1})
    return predictor_seeds(pd.DataFrame(rows), marginal, found, draws)


def test_mean_and_interval_over_seeds() -> None:
    found = tables()
    assert list(found.columns) == list(TABLES["predictor_seeds"])
    cov = found[(found["method"] == "grpo") & (found["predictor"] == "cov")].iloc[0]
    assert (cov["seeds"], cov["n"], cov["target"]) == (5, 500, "dH")
    assert cov["pcc"] == pytest.approx(np.mean(PCC)) and cov["srcc"] == pytest.approx(0.26)
    # The bootstrap is widened so that it is about the t interval of five values.
    half = t.ppf(0.975, 4) * np.std(PCC, ddof=1) / 5**0.5
    assert cov["pcc_hi"] - cov["pcc_lo"] == pytest.approx(2 * half, rel=0.15)
    assert cov["sign_lo"] == cov["sign_hi"] == pytest.approx(0.6)


def test_a_form_that_some_runs_lack_counts_those_that_have_it() -> None:
    found = tables()
    jvp = found[found["predictor"] == "jvp"].iloc[0]
    assert jvp["seeds"] == 2 and jvp["pcc"] == pytest.approx(0.98)


def test_one_run_has_no_interval_and_the_marginal_influence_is_a_target_of_its_own() -> None:
    found = tables().query("method == 'steer'")
    assert list(found["target"]) == ["dH", "influence_marginal"]
    assert list(found["pcc"]) == [0.1, 0.3] and found["pcc_lo"].isna().all()


def test_without_token_rows_there_is_nothing_to_say() -> None:
    empty = predictor_seeds(pd.DataFrame(), pd.DataFrame(), {}, {})
    assert empty.empty and _predictor_seeds(empty) == []


def test_the_lines_name_the_method_and_sort_by_correlation() -> None:
    lines = _predictor_seeds(tables())
    assert lines[0] == "grpo: forms against dH, mean over 5 runs"
    assert lines[2].startswith("jvp") and lines[3].startswith("cov")
    assert "0.52 [0.4" in lines[3] and lines[-1].split()[:2] == ["cov", "0.10"]
