"""Methods over seeds: labels, alignment, curves, last values, areas and equal levels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from entropy_lab.analysis import analyze
from entropy_lab.analysis.align import align
from entropy_lab.analysis.arms import Arm, arms, baseline, mixed
from entropy_lab.analysis.equal import passed, targets
from entropy_lab.analysis.methods import area, method_curves
from entropy_lab.analysis.seeds import stratified
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.record import create_run, open_run
from entropy_lab.record.manifest import update_info
from synthetic import write_run

NAN = float("nan")


def made(path: Path, config: dict, **extra: object):
    create_run(path, config, seeds=0, extra=extra)
    return open_run(path)


def curve(run: str, method: str, steps: int, *, rollout: int = 1, **columns) -> pd.DataFrame:
    """Rows of `curves`, with what is not given NaN; rollout: steps on a rollout."""
    step = np.arange(steps)
    data = {"run": run, "method": method, "step": step, "rollout": step // rollout}
    names = ["entropy_token_mean", "reward", "entropy_fixed", "dH_train", "dH_heldout",
             "response_length", "touched_share"]  # fmt: skip
    return pd.DataFrame(data | dict.fromkeys(names, NAN) | columns)


def test_a_method_is_named_by_the_settings_in_which_its_runs_differ(tmp_path: Path) -> None:
    resolved = {"name": "steer", "source": "x", "lambda_min": 0.7, "scope": "minibatch"}
    runs = [
        made(tmp_path / "a", {"method": {"name": "steer"}, "run": {"seed": 3}}, method=resolved),
        made(
            tmp_path / "b",
            {"method": {"name": "steer", "lambda_min": 0.5}},
            method=resolved | {"lambda_min": 0.5},
        ),
        made(tmp_path / "c", {"method": {"name": "grpo"}}),
        made(tmp_path / "d", {}),
    ]
    assert arms(runs, list("abcd")) == [
        Arm("steer lambda_min=0.7", 3), Arm("steer lambda_min=0.5", None), Arm("grpo", None),
        Arm("d", None),
    ]  # fmt: skip
    # Without the other value there is nothing to tell apart, and 1 is 1.0.
    assert arms(runs[1:], list("bcd"))[0].method == "steer"
    same = [
        made(tmp_path / name, {"method": {"name": "grpo", "clip_low": low, **more}})
        for name, low, more in (("e", 1, {}), ("f", 1.0, {"clip_high": 0.28}))
    ]
    labels = [arm.method for arm in arms(same, ["e", "f"])]
    assert labels == ["grpo clip_high=default", "grpo clip_high=0.28"]


def test_the_baseline_is_grpo_or_the_first_method() -> None:
    assert baseline(["steer", "grpo clip_high=0.2", "grpo clip_high=0.28"]) == "grpo clip_high=0.2"
    assert baseline(["steer", "grpo2"]) == "steer"


def test_runs_that_differ_in_more_than_method_and_seed_are_named(tmp_path: Path) -> None:
    def run(name: str, method: str, seed: int, lr: float, **train):
        config = {"run": {"seed": seed, "name": name}, "method": {"name": method},
                  "optimizer": {"lr": lr}, "model": {"seed": seed}, "train": train,
                  "eval": {"every": seed}}  # fmt: skip
        return made(tmp_path / name, config)

    equal = [run("a", "grpo", 0, 1e-3, keep_checkpoints=1), run("b", "steer", 1, 1e-3)]
    assert mixed(equal, ["a", "b"], arms(equal, ["a", "b"])) == []
    other = [equal[0], run("c", "grpo", 0, 1e-4), run("d", "grpo", 1, 1e-4, rollouts=9)]
    names = ["a", "c", "d"]
    twice, differ = mixed(other, names, arms(other, names))
    assert twice.startswith("a and c are both grpo with seed 0 and count as two seeds")
    assert "optimizer.lr (0.001, 0.0001)" in differ and "train.rollouts (default, 9)" in differ
    assert "Compare runs that are equal in the rest" in differ


def test_runs_are_aligned_on_steps_and_on_rollouts_where_those_hold_different_numbers() -> None:
    ramp = np.arange(6.0)
    one = curve("a", "grpo", 6, reward=ramp)
    runs = align(pd.concat([one, curve("b", "steer", 4, reward=ramp[:4])]))
    assert runs.axis == "step" and runs.last == 3 and list(runs.at) == list(range(6))
    np.testing.assert_array_equal(runs.raw["reward"], [ramp, [0, 1, 2, 3, NAN, NAN]])
    assert runs.members() == {"grpo": [0], "steer": [1]}
    # Three steps on a rollout against one: the steps of a rollout become their mean.
    runs = align(pd.concat([one, curve("b", "steer", 6, rollout=3, reward=ramp)]))
    assert runs.axis == "rollout" and runs.last == 1
    np.testing.assert_array_equal(runs.raw["reward"][1, :2], [1, 4])
    np.testing.assert_array_equal(runs.raw["reward"][0], ramp)


def test_the_area_is_the_mean_height_by_trapezoids() -> None:
    at = np.array([0.0, 1, 3])
    # (0 + 2) / 2 * 1 + (2 + 4) / 2 * 2 = 7, over a length of 3
    values = np.array([[0.0, 2, 4], [5, NAN, 5], [NAN, 2, NAN], [NAN] * 3])
    np.testing.assert_allclose(area(at, values), [7 / 3, 5, 2, NAN])


def test_a_level_is_passed_once_up_or_down_between_two_points() -> None:
    at, other = np.array([0.0, 10, 20, 30]), np.array([1.0, 3, 5, 7])
    up = np.array([0.2, 0.4, 0.3, 0.5])
    assert passed(0.3, up, other, at) == pytest.approx((2.0, 5.0))  # the first of three times
    assert passed(0.45, up, other, at) == pytest.approx((6.5, 27.5))
    assert passed(0.25, -up + 0.5, other, at) == pytest.approx((1.5, 2.5))
    assert passed(0.2, up, other, at) == (1.0, 0.0)
    assert passed(0.5, up, other, at) == (7.0, 30.0)
    assert np.isnan(passed(0.6, up, other, at)).all() and np.isnan(passed(0.1, up, other, at)).all()
    gap = np.array([0.2, NAN, 0.4, 0.5])
    assert passed(0.3, gap, other, at) == pytest.approx((3.0, 10.0))
    assert np.isnan(passed(0.3, np.full(4, NAN), other, at)).all()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory):
    """grpo with three seeds, steer with two that keep entropy and earn more, opo with one."""
    folder = tmp_path_factory.mktemp("sweep")
    ends = {"grpo": [(0.1, 0.5), (0.12, 0.52), (0.08, 0.48)], "steer": [(0.3, 0.7), (0.34, 0.8)],
            "opo": [(0.2, 0.35)]}  # fmt: skip
    paths = []
    for method, runs in ends.items():
        for seed, (entropy, reward) in enumerate(runs):
            path = folder / f"{method}-{seed}"
            write_run(
                path, method=method, seed=seed, steps=40 if method == "grpo" else 30, groups=2,
                group_size=2, length=2, entropy=(0.5, entropy), reward=(0.2, reward),
            )  # fmt: skip
            paths.append(path)
    return paths, analyze(paths, tokens=False)


def test_the_table_of_methods_says_seeds_last_values_areas_and_improvement(sweep) -> None:
    _, found = sweep
    table = found.tables["methods"].set_index("method")
    assert list(table.index) == ["grpo", "steer", "opo"]
    assert list(table["seeds"]) == [3, 2, 1] and list(table["which"]) == ["0, 1, 2", "0, 1", "0"]
    assert set(table["baseline"]) == {"grpo"} and set(table["last"]) == {29}
    curves = found.tables["curves"].query("step <= 29")
    last = curves[curves["step"] >= 25].groupby("run")["entropy_token_mean"]
    assert table.loc["opo", "entropy"] == pytest.approx(last.mean()["opo-0"], rel=1e-6)
    steer = np.sort(np.concatenate([last.get_group(f"steer-{i}") for i in (0, 1)]))
    assert table.loc["steer", "entropy"] == pytest.approx(steer[2:-2].mean())  # IQM of ten
    # A straight line from 0.5 to its end: the area is the middle of its ends.
    assert table.loc["opo", "entropy_area"] == pytest.approx(0.35)
    assert table.loc["steer", "improvement"] == 1 and table.loc["opo", "improvement"] < 0.5
    assert 0 < table.loc["steer", "improvement_lo"] < 1 == table.loc["steer", "improvement_hi"]
    assert math.isnan(table.loc["grpo", "improvement"])
    bands = [f"{c}_{e}" for c in ("entropy", "reward", "entropy_area") for e in ("lo", "hi")]
    assert table.loc["opo", [*bands, "improvement_lo"]].isna().all()
    assert table.loc["opo", "unit"] == "1 seed: no interval"
    assert table.loc[["grpo", "steer"], bands].notna().all(axis=None)
    assert table.loc["steer", "unit"] == "bootstrap over 2 seeds"


def test_curves_over_seeds_end_with_the_shortest_run_of_the_method(sweep) -> None:
    _, found = sweep
    table = found.tables["method_curves"].query("metric == 'entropy'")
    assert list(table.groupby("method", sort=False)["at"].max()) == [39, 29, 29]
    assert list(table.groupby("method", sort=False)["seeds"].min()) == [3, 2, 1]
    smooth = found.tables["curves"].pivot(index="step", columns="run", values="entropy_smooth")
    grpo = table[table["method"] == "grpo"]
    np.testing.assert_allclose(grpo["mean"], smooth[["grpo-0", "grpo-1", "grpo-2"]].mean(axis=1))
    later = grpo[grpo["at"] > 5]
    assert (later["mean_lo"] < later["mean"]).all() and (later["mean_hi"] > later["mean"]).all()
    assert table[table["method"] == "opo"]["mean_lo"].isna().all()
    assert "ends at step 29, the longest run at 39" in found.tables["warnings"]["text"].iloc[0]


def test_entropy_at_equal_reward_is_read_where_the_runs_pass_the_baselines_levels(sweep) -> None:
    _, found = sweep
    table = found.tables["equal_levels"].query("level == 'method'")
    at = table.query("matched == 'reward' and share == 0.5").set_index("method")
    # Lines of known slopes: where grpo has gained half, steer has given up less entropy. The
    # rewards are noisy (sd 0.02 before the running mean), so this is near, not exact.
    smooth = found.tables["curves"].query("step <= 29")
    base = smooth[smooth["method"] == "grpo"].groupby("step")["reward_smooth"].mean()
    target = (base.iloc[0] + base.iloc[-1]) / 2
    assert at["target"].to_numpy() == pytest.approx(target)
    assert at.loc["steer", "value"] > at.loc["grpo", "value"] == at.loc["steer", "baseline_value"]
    share = (target - 0.2) / 0.55  # steer's mean reward rises by 0.55 on average over its run
    assert at.loc["steer", "value"] == pytest.approx(0.5 - 0.18 * share, abs=0.015)
    assert list(at["reached"]) == [3, 2, 1]
    # steer ends above grpo's last entropies: never there.
    low = table.query("matched == 'entropy' and share == 1").set_index("method")
    assert low.loc["steer", "reached"] == 0 and math.isnan(low.loc["steer", "value"])
    runs = found.tables["equal_levels"].query("level == 'run' and matched == 'entropy'")
    assert len(runs) == 6 * 4
    assert set(runs[runs["value"].isna()]["reached"]) == {0}


def test_a_curve_stops_where_one_run_of_the_method_does_and_others_go_on() -> None:
    short = curve("a", "grpo", 3, reward=1.0)
    runs = align(pd.concat([short, curve("b", "grpo", 5, reward=3.0), curve("c", "opo", 5)]))
    table = method_curves(runs, stratified({"grpo": 2, "opo": 1}))
    assert set(table["metric"]) == {"reward"}  # nothing else was logged
    assert list(table["at"]) == [0, 1, 2] and (table["mean"] == 2).all()


def test_the_last_level_is_the_last_value_to_the_bit() -> None:
    values = 10 ** np.random.default_rng(0).uniform(-3, 0, (200, 12))
    data = [curve(str(i), str(i), 12, reward=row) for i, row in enumerate(values)]
    runs = align(pd.concat(data))
    for i, smooth in enumerate(runs.smooth["reward"]):
        assert targets(runs, "reward", [i])[1.0] == smooth[-1]


def test_a_single_run_reaches_its_own_last_level(tmp_path: Path) -> None:
    for method, end in (("grpo", 0.13), ("steer", 0.4)):
        write_run(tmp_path / method, method=method, steps=17, probed=False, entropy=(0.5, end))
    table = analyze([tmp_path / "grpo", tmp_path / "steer"]).tables["equal_levels"]
    rows = table.query("level == 'method' and matched == 'entropy' and share == 1")
    assert list(rows["reached"]) == [1, 0]


def test_json_of_several_runs_has_the_runs_and_the_tables_over_methods(sweep) -> None:
    _, found = sweep
    data = found.to_json()
    assert list(data) == [
        "runs", "methods", "equal_levels", "exponential_fit", "drift_final", "pass_at_k",
    ]  # fmt: skip
    assert [(r["run"], r["method"]) for r in data["runs"]][3] == ("steer-0", "steer")
    opo = data["methods"][2]
    assert opo["seeds"] == 1 and opo["reward_lo"] is None and opo["unit"] == "1 seed: no interval"
    assert opo["reward"] == found.tables["methods"]["reward"].iloc[2]
    json.dumps(data, allow_nan=False)


def test_a_comparison_is_the_same_in_any_number_of_processes(sweep, tmp_path: Path) -> None:
    paths, found = sweep
    again = analyze(paths, tmp_path, tokens=False, jobs=2)
    assert list(again.tables) == list(found.tables)
    for name, table in found.tables.items():
        pd.testing.assert_frame_equal(table, again.tables[name])
    with pytest.raises(ConfigError, match="jobs = 0 is not valid: give the number of processes"):
        analyze(paths, tmp_path, jobs=0)
    create_run(tmp_path / "empty", {}, seeds=0)
    with pytest.raises(RunError, match="empty holds no finished step"):
        analyze([paths[0], tmp_path / "empty"], tmp_path, tokens=False, jobs=2)


def test_without_tokens_nothing_is_read_of_them_and_it_is_said(sweep, tmp_path: Path) -> None:
    paths, found = sweep
    assert found.tables["validation"].empty and (found.tables["summary"]["tokens"] == 0).all()
    texts = found.tables["warnings"]["text"]
    assert (texts.str.contains("token rows were not read")).sum() == len(paths)
    assert not texts.str.contains("Record with probe.enabled").any()
    for part in paths[0].rglob("tokens/**/*.parquet"):
        part.write_bytes(b"broken")
    again = analyze([paths[0], paths[4]], tmp_path, tokens=False)
    pd.testing.assert_frame_equal(
        again.tables["curves"].query("run == 'grpo-0'"),
        found.tables["curves"].query("run == 'grpo-0'"),
    )


def test_a_run_without_a_seed_or_a_method_is_a_method_of_its_own(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        write_run(tmp_path / name, steps=6, probed=False)
        update_info(tmp_path / name, config={})
    table = analyze([tmp_path / "mine", tmp_path / "other"]).tables["methods"]
    assert list(table["method"]) == ["mine", "other"] and list(table["which"]) == ["", ""]
    assert set(table["baseline"]) == {"mine"}
