"""Replay: every method takes its own real step from one stored state, and nothing leaks between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from entropy_lab import cli, load
from entropy_lab.analysis.replay import METRICS, lines, pairs
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import make_method
from entropy_lab.train.launch import run_training
from entropy_lab.train.replay import replay
from entropy_lab.train.replay_point import replay_points
from tiny import TINY

RUNNER = CliRunner()
SETTINGS = [*TINY, "train.replay_every=2", "probe.deep_every=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(None, SETTINGS, tmp_path_factory.mktemp("replay") / "run")


METHODS = {
    "steer": make_method("steer"),
    "bonus": make_method("entropy_bonus", beta=0.05),
    "stare": make_method("stare", gate=3.0),
    "target": make_method("entropy_target", trials=12),
}


@pytest.fixture(scope="module")
def rows(run: Path) -> pd.DataFrame:
    return replay(run, METHODS, inner=2).rows


def test_the_runs_own_method_takes_the_step_that_the_run_took(run: Path, rows) -> None:
    own = rows[rows["own"]]
    steps = load(run).steps().set_index("step")
    assert [p.name for p in replay_points(run)] == ["step-000000", "step-000004", "step-000008"]
    assert own["method"].unique().tolist() == ["grpo"] and len(own) == 6
    for _, row in own.iterrows():
        taken = steps.loc[row["point"] + row["inner"]]
        for name in ("dH_train", "grad_norm", "entropy_token_mean", "G_dtheta", "influence_sum"):
            assert row[name] == taken[name], name  # bit for bit
        if row["inner"] == 0:
            assert row["dH_heldout"] == taken["dH_heldout"]


def test_the_runs_method_with_other_settings_is_not_taken_for_it(tmp_path: Path) -> None:
    changes = ["method.name=steer", "method.lambda_min=0.3", "probe.held_out=false"]
    out = run_training(None, [*SETTINGS, *changes, "train.rollouts=1"], tmp_path / "run")
    found = replay(out, {"steer": make_method("steer")}, deep=False)
    rows = found.rows.set_index("method")
    assert found.own == "steer (run)" and rows["own"].to_dict() == {
        "steer (run)": True, "steer": False
    }  # fmt: skip
    assert rows.loc["steer (run)", "dH_train"] == load(out).steps()["dH_train"][0]
    assert rows["method_weight_min"].round(6).to_dict() == {"steer (run)": 0.3, "steer": 0.7}
    assert rows["dH_heldout"].notna().all()  # though the run did not measure it


def test_the_order_of_methods_changes_nothing(run: Path, rows) -> None:
    backwards = replay(run, dict(reversed(METHODS.items())), inner=2).rows
    keys = ["method", "point", "inner"]
    one, other = (r.sort_values(keys).reset_index(drop=True) for r in (rows, backwards))
    pd.testing.assert_frame_equal(one[sorted(one)], other[sorted(other)], check_exact=True)


def test_methods_do_what_they_are_for_from_the_same_state(rows) -> None:
    first = rows[rows["inner"] == 0].pivot(index="point", columns="method", values="dH_train")
    assert (first["bonus"] > first["grpo"]).all()
    target = rows[(rows["method"] == "target") & (rows["method_feasible"] == 1)]
    assert not target.empty  # how many can be reached depends on the rollouts
    np.testing.assert_allclose(target["method_predicted"], -1e-3, rtol=0.1)
    assert (rows.groupby(["point", "inner"])["n_tokens"].nunique() == 1).all()
    assert (rows["kl"] >= 0).all() and rows["dlogp_correct"].notna().any()


def test_paired_differences_by_hand() -> None:
    table = pd.DataFrame(
        {
            "method": ["a", "a", "b", "b", "c"],
            "point": [0, 4, 0, 4, 0],
            "inner": [0] * 5,
            "dH_train": [-1.0, -3.0, -2.0, -5.0, 7.0],
            "kl": [0.1, 0.3, 0.1, 0.1, 0.5],
        }
    )
    found = pairs(table, "a").set_index(["method", "metric"])
    row = found.loc[("b", "dH_train")]
    assert (row["n"], row["difference"], row["mean"], row["baseline_mean"]) == (2, -1.5, -3.5, -2.0)
    assert row["difference_lo"] <= -1.5 <= row["difference_hi"]
    assert found.loc[("b", "kl"), "difference"] == pytest.approx(-0.1)
    alone = found.loc[("c", "dH_train")]
    assert alone["n"] == 1 and alone["difference"] == 8.0 and np.isnan(alone["difference_lo"])
    assert set(found.index.get_level_values("metric")) <= set(METRICS)
    with pytest.raises(ValueError, match="baseline 'z' was not replayed: "):
        pairs(table, "z")


def test_a_method_that_does_nothing_is_said_to() -> None:
    table = pd.DataFrame({"method": ["g"] * 3 + ["m"] * 3, "point": [0, 1, 2] * 2,
                          "inner": [0] * 6, "dH_train": [1.0, 2.0, 4.0] * 2,
                          "dH_heldout": [1.0] * 6})  # fmt: skip
    found = pairs(table, "g")
    row = found.set_index(["method", "metric"]).loc[("m", "dH_train")]
    assert row["difference_lo"] == row["difference"] == row["difference_hi"] == 0
    assert lines(found)[-1].count("0 at every state") == 2


def test_inner_steps_add_up_per_point() -> None:
    table = pd.DataFrame(
        {
            "method": ["a"] * 2 + ["b"] * 2,
            "point": [0] * 4,
            "inner": [0, 1] * 2,
            "dH_train": [1.0, 2.0, 4.0, 8.0],
            "dH_heldout": [0.5, np.nan, 0.25, np.nan],  # the last step has no next minibatch
            "kl": [0.1, 0.3, 0.1, 0.1],
        }
    )
    found = pairs(table, "a").set_index(["steps", "metric", "method"])
    assert found.loc[(1, "dH_train", "a"), "mean"] == 1.0
    assert found.loc[(2, "dH_train", "a"), "mean"] == 3.0
    assert found.loc[(1, "dH_train", "b"), "difference"] == 3.0
    assert found.loc[(2, "dH_train", "b"), "difference"] == 9.0
    assert found.loc[(2, "dH_heldout", "b"), "difference"] == -0.25
    assert found.loc[(2, "kl", "a"), "mean"] == pytest.approx(0.2)
    shown = lines(found.reset_index())
    assert shown[1] == "the first step of a rollout:" and shown[5] == "the first 2 steps:"


def test_the_command_writes_tables_and_says_what_came_out(run: Path, tmp_path: Path) -> None:
    words = ["audit", str(run), "--replay", "--method", "steer:lambda_min=0.5", "--no-deep"]
    result = RUNNER.invoke(cli.app, [*words, "--points", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "replayed from 2 states; difference to grpo" in result.output
    assert any(x.startswith("steer:lambda_min=0.5") for x in result.output.splitlines())
    assert pd.read_parquet(tmp_path / "replay_pairs.parquet")["n"].max() == 2
    assert set(pd.read_parquet(tmp_path / "replay.parquet")["method"]) == {
        "grpo", "steer:lambda_min=0.5"
    }  # fmt: skip


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inner = 3: a replay point holds the 2 minibatches"):
        replay(run, {}, inner=3)
    plain = run_training(None, [*TINY, "train.rollouts=1"], tmp_path / "plain")
    with pytest.raises(RunError, match=r"has no replay point: train with --set train\.replay_ev"):
        replay(plain, {})
    loss = tmp_path / "mine.py"
    loss.write_text("def loss(batch, stats):\n    return stats.logp.sum()\n")
    assert cli.run(["audit", str(run), "--replay", "--method", f"{loss}:loss"]) == 2


def test_a_damaged_point_is_named(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "replay" / "step-000004" / "extra.safetensors").unlink()
    assert [p.name for p in replay_points(copy)] == ["step-000000", "step-000008"]
    broken = copy / "replay" / "step-000008" / "model.safetensors"
    data = bytearray(broken.read_bytes())
    data[-1] ^= 1
    broken.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"step-000008 is damaged \(model.safetensors is missing or"):
        replay(copy, {})


def test_the_lines_show_the_baseline_itself() -> None:
    table = pairs(
        pd.DataFrame({"method": ["g", "m"], "point": [0, 0], "inner": [0, 0],
                      "dH_train": [-1e-3, -2e-3],
                      "dH_heldout": [-1e-3, -1e-3], "kl": [0.1, 0.1]}), "g",
    )  # fmt: skip
    shown = lines(table)
    assert "-1.00e-03 itself" in shown[3] and "-1.00e-03 [+nan, +nan]" in shown[4]
