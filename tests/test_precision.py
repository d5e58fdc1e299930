"""In which arithmetic, and of which weights, an entropy change is measured."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from entropy_lab import Probe, load
from entropy_lab.analysis import analyze
from entropy_lab.probe.floor import entropy64, moved_share
from entropy_lab.probe.path import Path as ParameterPath
from entropy_lab.probe.precision import Precision, Setting, no_autocast, watched_autocast
from entropy_lab.report import write_report
from entropy_lab.types import HELD_OUT
from toy import Toy, adamw, batches, score_of

BF16 = torch.bfloat16
WHERE = ["score", "loop", "weights"]


def inside(model: nn.Module):
    """A score that enters autocast itself."""
    plain = score_of(model)

    def score(rows):
        with torch.autocast("cpu", BF16):
            return plain(rows)

    return score


def train(out: Path | None, where: str, steps: int = 3, lr: float = 1e-2, **options) -> nn.Module:
    """A loop in bfloat16: by autocast in the score or around it, or on bfloat16 weights."""
    model = Toy(dtype=BF16 if where == "weights" else torch.float32)
    optimizer = adamw(model, lr)
    score = inside(model) if where == "score" else score_of(model)
    outer = torch.autocast("cpu", BF16) if where == "loop" else nullcontext()
    options = {"floor_every": 1, **options}
    probe = Probe(model, optimizer, out, score, **options) if out else None
    for step in range(steps):
        rows, batch = batches(Toy(), step, 16)[0]
        with outer:
            stats = probe.record(rows, batch) if probe else score(rows)
        (-(stats.logp * batch.advantage * batch.mask).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    if probe:
        probe.close()
    return model


@pytest.mark.parametrize("where", WHERE)
def test_same_measures_as_the_loss_forward_ran(tmp_path: Path, where: str) -> None:
    train(tmp_path / "run", where)
    steps = load(tmp_path / "run").steps()
    assert steps["before_is_loss_forward"].all() and (steps["repeat_max"] == 0).all()
    assert set(steps["measured_in"]) == {"bfloat16"} and set(steps["policy"]) == {"cast"}


@pytest.mark.parametrize("where", WHERE)
def test_other_arithmetic_brings_the_floor_down(tmp_path: Path, where: str) -> None:
    floors = {}
    for dtype in ("same", "float32", "float64"):
        train(tmp_path / dtype, where, dtype=dtype)
        steps = load(tmp_path / dtype).steps()
        floors[dtype] = steps["floor"].max()
        assert set(steps["measured_in"]) == {"bfloat16" if dtype == "same" else dtype}
        rounded = where == "weights" or dtype == "same"
        assert set(steps["policy"]) == {"cast" if rounded else "master"}
    assert floors["same"] > 1e-4
    assert 0 < floors["float32"] <= 3e-6
    assert floors["float64"] <= 1e-12


@pytest.mark.parametrize("where", [*WHERE, "float32"])
@pytest.mark.parametrize("dtype", ["auto", "same", "float32", "float64"])
@pytest.mark.parametrize("policy", ["master", "cast"])
def test_no_step_gives_no_change_and_the_probe_changes_no_weight(
    tmp_path: Path, where: str, dtype: str, policy: str
) -> None:
    train(tmp_path / "still", where, steps=2, lr=0.0, dtype=dtype, policy=policy)
    tokens = load(tmp_path / "still").tokens()
    assert len(tokens) and (tokens["dH"] == 0.0).all()
    assert (tokens["dH_float32"].dropna() == 0.0).all()
    probed = train(tmp_path / "run", where, dtype=dtype, policy=policy, deep_every=2)
    plain = train(None, where)
    for p, q in zip(probed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.is_autocast_enabled("cpu")


def test_auto_measures_a_few_responses_again_in_float32(tmp_path: Path) -> None:
    train(tmp_path / "auto", "score", steps=4)
    train(tmp_path / "float32", "score", steps=4, dtype="float32")
    keys = ["step", "uid", "pos"]
    auto = load(tmp_path / "auto").tokens().set_index(keys)
    exact = load(tmp_path / "float32").tokens().set_index(keys)
    again = auto[auto["dH_float32"].notna()]
    rows = again.reset_index()
    responses = rows.groupby("step")["uid"].unique()
    assert [len(r) for r in responses] == [8] * 4
    assert len({tuple(r & 0xFFFFFFFF) for r in responses}) > 1  # not the same ones at every step
    np.testing.assert_allclose(again["dH_float32"], exact.loc[again.index]["dH"], atol=3e-6)
    steps = load(tmp_path / "auto").steps().set_index("step")
    for step, part in again.groupby("step"):
        row = steps.loc[step]
        assert row["float32_rows"] == len(part)
        assert row["dH_float32"] == pytest.approx(part["dH_float32"].mean(), rel=1e-5)
        assert row["dH_float32_same"] == pytest.approx(part["dH"].mean(), rel=1e-5)
        off = part["dH"] - part["dH_float32"]
        assert row["rounding"] == pytest.approx((off**2).mean() ** 0.5, rel=1e-4)


def test_auto_is_same_where_training_is_in_float32(tmp_path: Path) -> None:
    train(tmp_path / "run", "float32")
    run = load(tmp_path / "run")
    assert set(run.steps()["measured_in"]) == {"float32"}
    assert set(run.steps()["policy"]) == {"master"}
    assert run.tokens()["dH_float32"].isna().all() and "float32_rows" not in run.steps()


def test_cast_measures_the_rounded_weights(tmp_path: Path) -> None:
    """Against float64 passes over weights that this test rounds itself."""
    model = Toy()
    optimizer, score = adamw(model), score_of(model)
    rows, batch = batches(model, 1, 16)[0]

    def rounded() -> torch.Tensor:
        theta = {n: p.detach().to(BF16) for n, p in model.named_parameters()}
        return entropy64(model, score, rows, theta)

    start = rounded()
    with Probe(model, optimizer, tmp_path / "run", score, policy="cast", dtype="float64") as probe:
        (-(probe.record(rows, batch).logp * batch.advantage * batch.mask).mean()).backward()
        optimizer.step()
    tokens = load(tmp_path / "run").tokens()
    mask = batch.mask.numpy()
    np.testing.assert_allclose(tokens["entropy"], start.numpy()[mask], atol=1e-6)
    np.testing.assert_allclose(tokens["dH"], (rounded() - start).numpy()[mask], atol=1e-8)
    steps = load(tmp_path / "run").steps()
    assert set(steps["policy"]) == {"cast"} and set(steps["measured_in"]) == {"float64"}
    assert steps["floor"].item() <= 1e-12  # the reference is of the rounded weights too


@pytest.mark.parametrize("where", WHERE)
def test_path_forms_do_without_the_rounding_of_half_precision(tmp_path: Path, where: str) -> None:
    train(tmp_path / "run", where, deep_every=1, lr=1e-3, dtype="float32")
    tokens = load(tmp_path / "run").tokens()
    own = tokens[(tokens["flags"] & HELD_OUT) == 0]
    for _, rows in own.groupby("step"):
        assert np.corrcoef(rows["dH_pred_jvp"], rows["dH"])[0, 1] > 0.99
    train(tmp_path / "auto", where, deep_every=1, lr=1e-3)
    same = load(tmp_path / "auto").tokens()
    size = own["dH"].abs().max()
    np.testing.assert_allclose(same["dH_pred_jvp"], own["dH_pred_jvp"], atol=1e-5 * size)
    # The gradient was rounded, and with bfloat16 weights the step too: that is the residual.
    steps = load(tmp_path / "run").steps()
    assert where == "weights" or 0 < steps["identity_error"].max() < 1e-2


def test_the_share_of_weights_that_moved() -> None:
    model = Toy()
    with torch.no_grad():
        model.head.bias.fill_(1.0)
    path = ParameterPath.begin(model)
    with torch.no_grad():
        model.head.bias[:3] += 1e-6  # far below the spacing of bfloat16 at 1
        model.head.bias[3] += 0.5
    total = sum(p.numel() for p in model.parameters())
    assert moved_share(path) == 4 / total
    assert moved_share(path, BF16) == 1 / total


def test_autocast_is_seen_and_kept_off_and_torch_is_left_as_it_was() -> None:
    functions = torch.set_autocast_enabled, torch.set_autocast_dtype
    a = torch.ones(2, 2)
    with watched_autocast("cpu") as seen:
        with torch.autocast("cpu", BF16):
            assert (a @ a).dtype == BF16
        with torch.autocast("cpu", enabled=False):
            pass
    assert set(seen) == {BF16}
    with torch.autocast("cpu", BF16), watched_autocast("cpu") as seen:
        pass
    assert seen == [BF16]
    with torch.autocast("cpu", BF16), no_autocast("cpu"):
        with torch.autocast("cpu", BF16):
            assert (a @ a).dtype == torch.float32
    with torch.autocast("cpu", BF16):
        assert (a @ a).dtype == BF16
    assert functions == (torch.set_autocast_enabled, torch.set_autocast_dtype)


def test_gradients_flow_through_another_arithmetic() -> None:
    model = Toy()
    rows, _ = batches(model, 1, 16)[0]
    params = list(model.parameters())
    with Precision(torch.float64).applied(model):
        found = torch.autograd.grad(score_of(model)(rows).entropy.sum(), params)
    double = Toy(dtype=torch.float64)
    exact = torch.autograd.grad(score_of(double)(rows).entropy.sum(), list(double.parameters()))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "probe dtype must be one of auto, same, float32, float64, got"),
        ({"policy": "student"}, "probe policy must be one of master, cast, got 'student'"),
    ],
)
def test_an_unknown_setting_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setting(**options)


def warned(run: Path) -> str:
    return "\n".join(analyze([run]).tables["warnings"]["text"])


def test_the_analysis_says_what_half_precision_did(tmp_path: Path) -> None:
    train(tmp_path / "auto", "score", steps=4)
    steps = load(tmp_path / "auto").steps()
    rms = (steps["rounding"] ** 2 * steps["float32_rows"]).sum() / steps["float32_rows"].sum()
    text = warned(tmp_path / "auto")
    assert f"float32 as well it is off by {rms**0.5:.1e} nats a token" in text
    assert "dH was measured in bfloat16, as the run was trained" in text
    train(tmp_path / "same", "score", dtype="same")
    assert "rounding is about 1e-3 nats a token. Set probe.dtype" in warned(tmp_path / "same")
    for where, dtype in (("float32", "auto"), ("score", "float32")):
        train(tmp_path / where / dtype, where, dtype=dtype)
        assert "dH was measured in" not in warned(tmp_path / where / dtype)
    train(tmp_path / "slow", "float32", lr=1e-6)
    share = load(tmp_path / "slow").steps()["moved_share_bfloat16"].median()
    found = analyze([tmp_path / "slow"])
    assert share < 0.05 and found.tables["summary"]["moved_bfloat16"].item() == share
    text = write_report(found.tables, found.out, "x").read_text()
    assert f"A step moves {share:.0%} of the weights once they are rounded to bfloat16" in text
