"""The audit of real runs: the run's own gradient comes back, others are what they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from audit_runs import METHODS, spec, trained
from entropy_lab import load
from entropy_lab.analysis.audit import audit
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import Grpo
from entropy_lab.report.audit import audit_lines
from toy import Toy, adamw, run_loop


def by_method(found) -> pd.DataFrame:
    return found.tables["audit"].set_index("method")


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("audit"), "grpo", "train.micro_batch=3")


@pytest.mark.parametrize("micro_batch", [3, 8])
@pytest.mark.parametrize("name", METHODS)
def test_the_method_that_made_the_run_has_its_recorded_gradient(
    name: str, micro_batch: int, tmp_path: Path
) -> None:
    run = trained(tmp_path, name, f"train.micro_batch={micro_batch}")
    other = "grpo:clip_low=0.01,clip_high=0.01,dual_clip=1.5"
    found = audit(run, [spec(name), other])
    table = by_method(found)
    row = table.loc[spec(name)]
    assert row["own"] and row["complete"] and row["steps"] == 12
    assert row["distance_run_max"] <= 1e-6
    assert row["distance_run_entropy"] <= 1e-6
    assert row["entropy_push"] == (name == "entropy_bonus")
    # Another method is not the recorded one, so the comparison can fail.
    assert table.loc[other, "distance_run"] > 0.01 and not table.loc[other, "own"]
    text = audit_lines(found.tables)
    assert any(line.startswith(f"{spec(name)}: made this run, and reproduces") for line in text)


@pytest.mark.parametrize("scope", ["minibatch", "microbatch"])
def test_the_scope_of_the_own_method_is_its_own(scope: str, tmp_path: Path) -> None:
    more = ["method.mapping=linear", "method.omega=steer_released", f"method.scope={scope}"]
    run = trained(tmp_path, "steer", "train.micro_batch=4", *more)
    own = f"steer:mapping=linear,omega=steer_released,scope={scope}"
    found = audit(run, [own])
    assert by_method(found).loc[own, "distance_run_max"] <= 1e-6
    parts = found.tables["audit_scope"].set_index(["split", "divisor"])
    parts = parts[parts["method"] == own]["distance"]
    # Seen in the run's own micro-batches, a method of that scope is what it is.
    assert (parts["micro-batch", 1] == 0) == (scope == "microbatch")
    assert parts["micro-batch", 4] > 0 and parts["rank", 4] > 0


def test_without_a_method_the_own_one_is_audited(grpo: Path) -> None:
    found = audit(grpo)
    assert list(found.tables["audit"]["method"]) == ["run", "grpo"]
    assert by_method(found).loc["grpo", "distance_run_max"] <= 1e-6
    assert found.out == grpo / "analysis"
    disk = pd.read_parquet(grpo / "analysis" / "audit.parquet")
    pd.testing.assert_frame_equal(disk, found.tables["audit"], check_dtype=False)


def test_the_own_method_is_named_with_its_settings(tmp_path: Path) -> None:
    more = ["method.symmetric=false", "method.clip_high=inf", "method.mapping=linear"]
    run = trained(tmp_path, "steer", *more, "train.rollouts=1")
    found = by_method(audit(run))
    label = "steer:clip_high=inf,mapping=linear,symmetric=false"
    assert list(found.index) == ["run", label, "grpo"]
    assert found.loc[label, "own"] and found.loc[label, "distance_run_max"] <= 1e-6


def test_kl_cov_is_inert_exactly_on_policy_and_only_there(grpo: Path, tmp_path: Path) -> None:
    """Its penalty |logp - old_logp| has gradient 0 at 0; later steps of a rollout feel it."""
    wide = "grpo:clip_low=inf,clip_high=inf,dual_clip=inf"
    later = by_method(audit(grpo, ["kl_cov:ratio=0.1"], reference=wide, out=tmp_path / "a"))
    assert not later.loc["kl_cov:ratio=0.1", "inert"]
    run = trained(tmp_path, "grpo", "train.minibatches=1")
    first = by_method(audit(run, ["kl_cov:ratio=0.1"], reference=wide, out=tmp_path / "b"))
    row = first.loc["kl_cov:ratio=0.1"]
    assert row["inert"] and row["distance"] == 0 and row["touched"] == 0


def test_a_clip_is_inert_where_no_ratio_leaves_it(tmp_path: Path) -> None:
    run = trained(tmp_path, "grpo", "train.minibatches=1")
    found = by_method(audit(run, ["clip_higher", "grpo:clip_low=0.01", "steer"]))
    assert found["inert"].to_dict() == {
        "run": True, "clip_higher": True, "grpo:clip_low=0.01": True, "steer": False, "grpo": True,
    }  # fmt: skip
    assert np.isnan(found.loc["grpo", "explained"])  # its weight is one and does not vary


def test_distance_and_touched_by_hand(grpo: Path) -> None:
    """Against GRPO's clip written out over the rows of the log."""
    found = by_method(audit(grpo, ["grpo:clip_low=0.001,clip_high=0.001"]))
    rows = load(grpo).tokens()
    rows = rows[(rows["flags"] & 32) == 0]
    ratio = np.exp(rows["logp"].astype(float) - rows["old_logp"].astype(float))
    a = rows["advantage"].astype(float)
    count = rows.groupby("step")["uid"].transform("size")

    def push(clip: float):
        inside = np.where(a > 0, ratio <= 1 + clip, ratio >= 1 - clip)
        return np.where(inside & ~((a < 0) & (ratio > 10)), ratio * a / count, 0.0)

    c, base = push(0.001), push(0.2)
    assert (c != base).any()
    row = found.iloc[1]
    assert row["distance"] == pytest.approx(
        np.linalg.norm(c - base) / np.linalg.norm(base), rel=1e-5
    )
    assert row["touched"] == pytest.approx((c != base).mean(), rel=1e-12)
    assert row["cosine"] == pytest.approx(
        c @ base / np.linalg.norm(c) / np.linalg.norm(base), rel=1e-5
    )


def test_predictions_are_the_closed_forms_of_the_log(grpo: Path) -> None:
    """The recorded gradient predicts what the probe itself logged; differences are paired."""
    table = by_method(audit(grpo, ["steer"]))
    steps = load(grpo).steps()
    for form in ("softmax", "softmax_state"):
        logged = steps[f"dH_pred_{form}"].mean()
        assert table.loc["run", f"dH_{form}"] == pytest.approx(logged, rel=1e-4)
        row = table.loc["steer"]
        assert row[f"dH_{form}_run"] == table.loc["run", f"dH_{form}"]
        assert row[f"dH_{form}_difference"] == pytest.approx(
            row[f"dH_{form}"] - row[f"dH_{form}_run"], rel=1e-6
        )
        assert row[f"dH_{form}_lo"] < row[f"dH_{form}"] < row[f"dH_{form}_hi"]
    rows = load(grpo).tokens()
    rows = rows[(rows["flags"] & 32) == 0].astype({"dH": float, "dH_pred_softmax": float})
    slope = (rows["dH"] * rows["dH_pred_softmax"]).sum() / (rows["dH_pred_softmax"] ** 2).sum()
    assert table.loc["steer", "slope_softmax"] == pytest.approx(slope, rel=1e-4)


def test_a_step_logged_in_part_claims_nothing(tmp_path: Path) -> None:
    run = trained(tmp_path, "grpo", "probe.fraction=0.5")
    found = audit(run)
    table = by_method(found)
    assert not table["complete"].any()
    assert table["dH_softmax_state"].isna().all() and table["dH_softmax"].notna().all()
    text = "\n".join(audit_lines(found.tables))
    assert "logged in part, so its gradient cannot be reproduced" in text
    assert "note: 12 of 12 steps are logged in part" in text and "reproduces its" not in text
    # c is scaled to that of the whole step: its sum over half of the rows is about half as large.
    assert table.loc["grpo", "weight_mean"] == pytest.approx(0.5, abs=0.1)
    assert table.loc["grpo", "distance_run"] < 0.5


def test_core_profile_predicts_nothing_and_says_so(tmp_path: Path) -> None:
    run = trained(tmp_path, "grpo", "probe.profile=core")
    found = audit(run, ["grpo", "entropy_bonus:beta=1e-9"])
    table = by_method(found)
    assert table["dH_softmax"].isna().all() and table["distance_logits"].isna().all()
    assert table.loc["grpo", "distance_run_max"] <= 1e-6
    # However small, a push on the entropy is one whose size is not known here.
    assert not table.loc["entropy_bonus:beta=1e-9", "inert"]
    assert "note: m0, m1, m2 are not in the log" in "\n".join(audit_lines(found.tables))
    with pytest.raises(RunError, match="steer:omega=steer_released cannot be audited on this log"):
        audit(run, ["steer:omega=steer_released"])


def test_a_loop_of_the_users_own_is_audited(tmp_path: Path) -> None:
    """Double precision, no run.json method: the recorded gradient is the baseline."""
    torch.manual_seed(0)
    model = Toy(dtype=torch.float64)
    run_loop(model, adamw(model), tmp_path / "run", steps=3, size=8, method="steer", held_out=True)
    found = audit(tmp_path / "run", ["steer", "grpo"])
    table = by_method(found)
    assert not table.loc["steer", "own"] and table.loc["steer", "distance_run_max"] < 1e-6
    assert table.loc["grpo", "distance_run"] > 0.01
    notes = table.loc["run", "notes"]
    assert "run.json does not name the method that made the run" in notes
    assert table.loc["run", "unit"].startswith("two-stage bootstrap")


def test_advantages_of_a_method_are_recomputed_from_the_rewards(grpo: Path) -> None:
    class Plain(Grpo):
        """GRPO without the standard deviation, for groups that are known whole."""

        def advantages(self, batch):
            mean = torch.zeros_like(batch.reward)
            for group in batch.group.unique():
                mean[batch.group == group] = batch.reward[batch.group == group].mean()
            return torch.where(batch.mask, (batch.reward - mean)[:, None], 0.0)

    found = audit(grpo, [Plain()])
    row = found.tables["audit"].iloc[1]
    assert row["notes"].splitlines()[-1] == "its advantages are recomputed from the rewards"
    rows, samples = load(grpo).tokens(), load(grpo).samples().set_index("uid")
    rows = rows[(rows["flags"] & 32) == 0]
    centred = samples["reward"] - samples.groupby("group")["reward"].transform("mean")
    a = rows["uid"].map(centred).astype(float)
    logged = rows["advantage"].astype(float)
    count = rows.groupby("step")["uid"].transform("size")
    ratio = np.exp(rows["logp"].astype(float) - rows["old_logp"].astype(float))
    inside = np.where(a > 0, ratio <= 1.2, (ratio >= 0.8) & (ratio <= 10))
    difference = np.where(inside, ratio * (a - logged) / count, 0.0)
    base = np.where(inside, ratio * logged / count, 0.0)
    expected = np.linalg.norm(difference) / np.linalg.norm(base)
    assert row["distance"] == pytest.approx(expected, rel=1e-4)


def test_a_method_without_rewards_says_what_is_missing(grpo: Path, tmp_path: Path) -> None:
    class Plain(Grpo):
        def advantages(self, batch):
            return super().advantages(batch) * 2

    shutil.copytree(grpo, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "samples")
    with pytest.raises(ConfigError, match="Plain makes its own advantages: .*batch.reward"):
        audit(tmp_path / "run", [Plain()])


def test_equal_audits_are_equal(grpo: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)  # the global state must not matter
    one = audit(grpo, ["steer"], out=tmp_path / "one").tables
    torch.manual_seed(8)
    other = audit(grpo, ["steer"], out=tmp_path / "other").tables
    for name, data in one.items():
        pd.testing.assert_frame_equal(data, other[name])


def test_a_method_that_did_not_make_the_run_is_not_believed(grpo: Path, tmp_path: Path) -> None:
    """run.json names a clip that the recorded gradient contradicts."""
    shutil.copytree(grpo, tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    info["method"]["clip_low"] = 0.001
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    found = audit(tmp_path / "run")
    assert by_method(found).loc["grpo:clip_low=0.001", "distance_run_max"] > 1e-3
    text = "\n".join(audit_lines(found.tables))
    assert "grpo:clip_low=0.001: made this run, but DOES NOT reproduce its recorded grad" in text
    assert "run, the recorded gradient of grpo" in text


def test_what_the_terminal_says_of_an_inert_method(tmp_path: Path) -> None:
    run = trained(tmp_path, "grpo", "train.minibatches=1")
    found = audit(run, ["clip_higher", "steer:mapping=linear"])
    lines = audit_lines(found.tables)
    start = lines.index("clip_higher")
    assert lines[start + 1] == "  inert here: c differs by 0 %, below 1 %"
    assert lines[start + 2] == "  its weight does not vary here"
    block = lines[lines.index("steer:mapping=linear") :]
    assert block[1].startswith("  c differs by ") and block[2].startswith("  touches ")
    assert any("of the weights within 1 % of the largest; max/p99 of |Omega|" in x for x in block)
    assert any(x.startswith("predictions are those of plain SGD") for x in block)
