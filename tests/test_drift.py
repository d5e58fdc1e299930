"""Predictions added up over a run against the change of the fixed probe set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from entropy_lab.analysis import analyze
from entropy_lab.analysis.drift import drift, drift_final, with_methods
from entropy_lab.analysis.seeds import stratified
from synthetic import PLANTED, write_run

NAN = float("nan")


def of(table: pd.DataFrame, predictor: str) -> pd.DataFrame:
    return table[table["predictor"] == predictor]


def steps(**columns: list[float]) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    return pd.DataFrame({"step": range(count), **columns})


def test_sums_of_predictions_stand_beside_the_change_of_the_fixed_set() -> None:
    rows = steps(
        entropy_fixed=[1.0, 0.9, 0.7, 0.6],
        dH_pred_steer=[-0.01, -0.02, -0.01, -0.01],
        dH_pred_steer_zero=[9.0] * 4,  # of one quadrant: no step mean
        dH_pred_slope=[9.0] * 4,  # another estimate, no prediction
    )
    table = drift(rows, "a", "grpo")
    assert set(table["predictor"]) == {"steer"} and set(table["method"]) == {"grpo"}
    # The last step's change is not known: neither dH_fixed nor a step after it.
    assert list(table["step"]) == [0, 1, 2] and list(table["steps"]) == [1, 2, 3]
    np.testing.assert_allclose(table["predicted"], [-0.01, -0.03, -0.04])
    np.testing.assert_allclose(table["realised"], [-0.1, -0.3, -0.4])
    np.testing.assert_allclose(table["drift"], [0.09, 0.27, 0.36])
    # First half (two of three): (0.01 * 0.1 + 0.03 * 0.3) / (0.01^2 + 0.03^2) = 10
    np.testing.assert_allclose(table["factor"], 10)
    np.testing.assert_allclose(table["drift_scaled"], 0, atol=1e-12)
    np.testing.assert_allclose(table["scaled"], [-0.1, -0.3, -0.4])


def test_a_measured_change_of_the_fixed_set_closes_the_last_step() -> None:
    rows = steps(
        entropy_fixed=[1.0, 0.9], dH_fixed=[-0.1, -0.2], dH_pred_cov=[0.1, 0.1], dH_train=[-0.2, 0]
    )
    table = drift(rows, "a", "grpo")
    np.testing.assert_allclose(of(table, "cov")["realised"], [-0.1, -0.3])
    measured = of(table, "dH_train")
    np.testing.assert_allclose(measured["drift"], [-0.1, 0.1])
    assert list(dict.fromkeys(table["predictor"])) == ["cov", "dH_train"]


def test_what_is_known_at_some_steps_is_compared_with_the_changes_in_those() -> None:
    rows = steps(
        entropy_fixed=[1.0, NAN, NAN, 0.5, NAN, 0.2],
        dH_fixed=[-0.1, NAN, NAN, -0.2, NAN, -0.05],
        dH_pred_cov=[-0.01] * 6,
        dH_pred_jvp=[-0.2, NAN, NAN, NAN, NAN, -0.1],
    )
    table = drift(rows, "a", "grpo")
    path = of(table, "jvp")
    assert list(path["step"]) == [0, 5] and list(path["steps"]) == [1, 2]
    np.testing.assert_allclose(path["realised"], [-0.1, -0.15])
    np.testing.assert_allclose(path["predicted"], [-0.2, -0.3])
    # It is shown on the fixed set's own curve, as far off as its sum is.
    np.testing.assert_allclose(path["fixed"], [-0.1, -0.85])
    np.testing.assert_allclose(path["scaled"] - path["fixed"], path["drift_scaled"])
    np.testing.assert_allclose(path["factor"], 0.5)
    np.testing.assert_allclose(path["drift_scaled"], [0, 0], atol=1e-12)
    # Logged at every step, unprobed ones too: the sum over all against the whole change, which
    # is known after a probed step and before one.
    closed = of(table, "cov")
    assert list(closed["step"]) == [0, 2, 3, 4, 5] and list(closed["steps"]) == [1, 3, 4, 5, 6]
    np.testing.assert_allclose(closed["realised"], [-0.1, -0.5, -0.7, -0.8, -0.85])
    np.testing.assert_allclose(closed["predicted"], -0.01 * closed["steps"])
    final = drift_final(table, {"a": 6}, {}).set_index("predictor")
    assert final.loc["jvp", "covered"] == pytest.approx(1 / 3)
    assert final.loc["cov", "covered"] == 1 and final.loc["cov", "steps"] == 6
    assert final.loc["jvp", "drift"] == pytest.approx(-0.15)


def test_a_gap_in_the_log_is_no_step() -> None:
    rows = steps(entropy_fixed=[1.0, 0.9, 0.2], dH_pred_cov=[-0.1] * 3).assign(step=[0, 1, 7])
    table = drift(rows, "a", "grpo")
    assert list(table["step"]) == [0]
    np.testing.assert_allclose(table["realised"], [-0.1])


def test_without_a_fixed_set_there_is_no_drift() -> None:
    assert drift(steps(dH_pred_cov=[0.1, 0.1]), "a", "grpo").empty
    assert drift(steps(dH_pred_cov=[0.1], entropy_fixed=[NAN]), "a", "grpo").empty
    assert drift_final(drift(steps(x=[1.0]), "a", "grpo"), {}, {}).empty


def test_the_final_drift_of_a_method_is_the_mean_over_its_runs() -> None:
    parts = []
    for run, last in (("a", 0.8), ("b", 0.6)):
        rows = steps(entropy_fixed=[1.0, last], dH_fixed=[last - 1, 0], dH_pred_cov=[-0.1, 0])
        parts.append(drift(rows, run, "grpo"))
    short = steps(entropy_fixed=[1.0, 0.9])  # a run that does not log the form
    parts.append(drift(short, "c", "grpo"))
    table = pd.concat([p for p in parts if len(p)])
    draws = stratified({"grpo": 3})
    final = drift_final(table, {"a": 2, "b": 2, "c": 2}, draws).query("level == 'method'")
    row = final.set_index("predictor").loc["cov"]
    assert row["seeds"] == 2
    assert row["drift"] == pytest.approx((0.1 + 0.3) / 2)
    assert row["drift_lo"] < 0.1 and row["drift_hi"] > 0.3
    alone = drift_final(table[table["name"] == "a"], {"a": 2}, stratified({"grpo": 1}))
    row = alone.query("level == 'method'").iloc[0]
    assert row["drift"] == pytest.approx(0.1) and np.isnan(row["drift_lo"])


def test_a_method_is_followed_to_where_its_shortest_run_ends() -> None:
    one = steps(entropy_fixed=[1.0, 0.8, 0.6], dH_fixed=[-0.2] * 3, dH_pred_cov=[-0.1] * 3)
    two = steps(entropy_fixed=[1.0, 0.6], dH_fixed=[-0.4] * 2, dH_pred_cov=[-0.3] * 2)
    runs = [drift(one, "a", "grpo"), drift(two, "b", "grpo")]
    runs.append(drift(two[["step", "entropy_fixed"]].assign(dH_train=-0.1), "c", "grpo"))
    table = with_methods(pd.concat(runs))
    assert len(table) == 3 + 2 + 1 + 2 + 1
    cov = of(table[table["level"] == "method"], "cov")
    assert list(cov["step"]) == [0, 1] and set(cov["name"]) == {"grpo"}
    np.testing.assert_allclose(cov["realised"], [-0.3, -0.6])
    np.testing.assert_allclose(cov["predicted"], [-0.2, -0.4])
    assert with_methods(drift(steps(x=[1.0]), "a", "grpo")).empty


def test_a_single_run_has_its_drift_too(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=9, drift=-0.04, entropy=(0.5, 0.18))
    found = analyze([tmp_path / "run"])
    names = [*PLANTED, "dH_train", "dH_heldout"]
    assert list(dict.fromkeys(found.tables["drift"]["predictor"])) == names
    final = found.tables["drift_final"].set_index("predictor")
    assert final.loc["steer", "realised"] == pytest.approx(-0.32 - 0.04)
    assert final.loc["steer", "covered"] == 1
    steps = found.tables["curves"]
    assert final.loc["dH_train", "predicted"] == pytest.approx(steps["dH_train"].sum())
    assert final.loc["cov", "predicted"] == pytest.approx(steps["dH_pred_cov"].sum())
