"""The measuring rules, on a toy model in a plain PyTorch loop."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from entropy_lab import Probe, load, policy_loss
from entropy_lab.interventions import make_method, plan_step
from entropy_lab.types import HELD_OUT
from toy import T, Toy, adamw, batches, run_loop, score_of


def test_zero_learning_rate_gives_exactly_zero_change(tmp_path: Path) -> None:
    model = Toy()
    run_loop(model, adamw(model, lr=0.0), tmp_path / "run", held_out=True)
    tokens = load(tmp_path / "run").tokens()
    assert len(tokens) > 0
    assert (tokens["dH"] == 0.0).all() and (tokens["dlogp"] == 0.0).all()


def test_zero_learning_rate_with_dropout_active(tmp_path: Path) -> None:
    model = Toy(dropout=0.5).train()
    run_loop(model, adamw(model, lr=0.0), tmp_path / "run")
    run = load(tmp_path / "run")
    assert (run.tokens()["dH"] == 0.0).all()
    steps = run.steps()
    assert steps["dropout_off"].all() and not steps["before_is_loss_forward"].any()
    assert model.drop.training, "the probe must leave the modes as they were"


@pytest.mark.parametrize("options", [{}, {"fraction": 0.5}, {"floor_every": 1, "deep_every": 1}])
def test_weights_are_bitwise_those_of_a_run_without_the_probe(tmp_path: Path, options) -> None:
    with_probe, without = Toy(dropout=0.3).train(), Toy(dropout=0.3).train()
    torch.manual_seed(7)
    run_loop(without, adamw(without), None, held_out=True, clip=0.5)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    run_loop(with_probe, adamw(with_probe), tmp_path / "run", held_out=True, clip=0.5, **options)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(with_probe.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dH_is_the_difference_of_two_independent_float64_passes(tmp_path: Path) -> None:
    model = Toy(dtype=torch.float64)
    micros = batches(model, 100, 8, torch.float64)
    first = [p.clone() for p in model.parameters()]
    run_loop(model, adamw(model), tmp_path / "run", steps=1)
    tokens = load(tmp_path / "run").tokens().set_index(["uid", "pos"]).sort_index()

    def entropy() -> dict[tuple[int, int], float]:
        found = {}
        for rows, batch in micros:
            logits = model(rows.ids)[:, 2:-1]
            h = torch.distributions.Categorical(logits=logits).entropy()
            for i, uid in enumerate(batch.uid.tolist()):
                found |= {(uid, t): float(h[i, t]) for t in range(T) if batch.mask[i, t]}
        return found

    with torch.no_grad():
        after = entropy()
    for p, q in zip(model.parameters(), first, strict=True):
        p.data = q
    with torch.no_grad():
        before = entropy()
    assert len(tokens) == len(before)
    for key, h in before.items():
        assert tokens.loc[key, "entropy"] == pytest.approx(h, abs=1e-6)
        assert tokens.loc[key, "dH"] == pytest.approx(after[key] - h, abs=1e-9, rel=1e-6)


def test_rows_do_not_depend_on_micro_batching(tmp_path: Path) -> None:
    """float64 model; the log keeps float32, so rows are compared before they are written."""
    found = []
    for size in (4, 16):
        model = Toy(dtype=torch.float64)
        micros = batches(model, 5, size, torch.float64)
        optimizer = adamw(model)
        probe = Probe(model, optimizer, tmp_path / f"run{size}", score_of(model))
        plans = plan_step(make_method("grpo"), [b for _, b in micros], None)
        for (rows, batch), (plan, share) in zip(micros, plans, strict=True):
            policy_loss(probe.record(rows, batch), batch, plan, share).loss.backward()
        window = probe.window
        optimizer.step()
        probe.close()
        scorer_rows = torch.cat([r.grad.grad_logp for r in window.records])
        after = torch.cat([score_of(model)(rows).entropy.detach() for rows, _ in micros])
        found.append((scorer_rows, after))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-12


def test_step_means_are_means_of_the_token_rows(tmp_path: Path) -> None:
    model = Toy()
    run_loop(model, adamw(model), tmp_path / "run", held_out=True)
    run = load(tmp_path / "run")
    tokens, steps = run.tokens(), run.steps().set_index("step")
    held = (tokens["flags"] & HELD_OUT) > 0
    for step, row in steps.iterrows():
        here = tokens["step"] == step
        own, other = tokens[here & ~held], tokens[here & held]
        assert len(own) == row["n_tokens"] == row["n_probed"]
        for name in ("cov", "steer", "steer_released", "discriminant", "softmax", "softmax_state"):
            mean = own[f"dH_pred_{name}"].mean()
            assert row[f"dH_pred_{name}"] == pytest.approx(mean, rel=1e-4, abs=1e-9)
        assert row["dH_train"] == pytest.approx(own["dH"].mean(), rel=1e-5)
        assert row["dH_heldout"] == pytest.approx(other["dH"].mean(), rel=1e-5)
        assert row["heldout_source"] == "given"
        assert row["entropy_token_mean"] == pytest.approx(own["entropy"].mean(), rel=1e-6)
        pushed = (own["advantage"] > 0) & (own["logp"] > -own["entropy"])
        assert row["dH_pos_likely"] == pytest.approx(own.loc[pushed, "dH"].mean(), rel=1e-4)


def test_held_out_rows_feel_only_pushes_on_their_own_state(tmp_path: Path) -> None:
    """The held-out batch shares prompts with no training batch, but its own copy does."""
    model = Toy(dtype=torch.float64)
    micros = batches(model, 5, 16, torch.float64)
    optimizer = adamw(model)
    probe = Probe(model, optimizer, tmp_path / "run", score_of(model))
    rows, batch = micros[0]
    plan = make_method("grpo").plan(batch, None)
    policy_loss(probe.record(rows, batch), batch, plan).loss.backward()
    probe.hold_out(batches(model, 5, 16, torch.float64) + batches(model, 6, 16, torch.float64))
    optimizer.step()
    probe.close()
    tokens = load(tmp_path / "run").tokens().set_index(["micro", "uid", "pos"])
    own, copy, other = tokens.loc[0], tokens.loc[1], tokens.loc[2]
    assert (copy["dH_pred_softmax"] == 0).all() and (copy["grad_logp"] == 0).all()
    np.testing.assert_array_equal(copy["dH_pred_softmax_state"], own["dH_pred_softmax_state"])
    np.testing.assert_array_equal(copy["dH"], own["dH"])
    assert (other["dH_pred_softmax_state"] == 0).all() and (other["dH"] != 0).any()


def test_fixed_set_is_saved_and_measured_each_probed_step(tmp_path: Path) -> None:
    model = Toy()
    optimizer = adamw(model)
    score = score_of(model)
    fixed = batches(model, 77, 16)
    with torch.no_grad():
        start = score(fixed[0][0]).entropy[fixed[0][1].mask].double().mean()
    probe = Probe(model, optimizer, tmp_path / "run", score)
    probe.fix(fixed)
    for step in range(3):
        rows, batch = batches(model, step, 16)[0]
        (-(probe.record(rows, batch).logp * batch.advantage * batch.mask).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    probe.close()
    with torch.no_grad():
        end = score(fixed[0][0]).entropy[fixed[0][1].mask].double().mean()
    run = load(tmp_path / "run")
    steps = run.steps()
    assert len(run.fixed()) == int(fixed[0][1].mask.sum())
    assert (steps["heldout_source"] == "fixed").all()
    assert steps["entropy_fixed"][0] == pytest.approx(float(start), abs=1e-7)
    # The same rows every step: on the fixed set, and only there, the changes telescope.
    assert steps["dH_fixed"].sum() == pytest.approx(float(end - start), abs=1e-7)


def test_mistakes_are_named(tmp_path: Path) -> None:
    model = Toy()
    rows, batch = batches(model, 1, 16)[0]
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 1.5"):
        Probe(model, adamw(model), tmp_path / "a", score_of(model), fraction=1.5)
    probe = Probe(model, adamw(model), tmp_path / "b", score_of(model), strict=True)
    with torch.no_grad(), pytest.raises(RuntimeError, match="outside torch.no_grad"):
        probe.record(rows, batch)
    probe.close()
    probe.close()  # a second close does nothing


def test_a_loop_may_leave_out_everything_optional(tmp_path: Path) -> None:
    """No uid, state, old_entropy or reward: what needs them is empty, the rest is there."""
    model = Toy()
    optimizer = adamw(model)
    rows, batch = batches(model, 1, 16)[0]
    bare = type(batch)(batch.token_id, batch.mask, batch.advantage, batch.old_logp)
    with Probe(model, optimizer, tmp_path / "run", score_of(model)) as probe:
        (-(probe.record(rows, bare).logp * bare.mask).sum()).backward()
        optimizer.step()
    tokens = load(tmp_path / "run").tokens()
    assert tokens["dH_pred_softmax_state"].isna().all()
    assert tokens["dH_pred_steer_released"].isna().all()
    assert tokens["dH_pred_softmax"].notna().all()
    assert tokens["uid"].nunique() == 16


def test_readme_loop_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    block = next(b for b in blocks if "Probe(" in b)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own text
    tokens = load("runs/mine").tokens()
    assert len(tokens) > 0 and (tokens["dH"] != 0).any()


@pytest.mark.parametrize("profile", ["core", "full"])
def test_a_profile_logs_its_columns_and_no_others(tmp_path: Path, profile: str) -> None:
    model = Toy()
    run_loop(model, adamw(model), tmp_path / "run", profile=profile, held_out=True)
    columns = set(load(tmp_path / "run").tokens())
    assert {"dH", "dH_pred_cov", "dH_pred_softmax_state", "grad_logp"} <= columns
    only_full = {"m0", "dlogp", "grad_entropy", "old_entropy", "dH_pred_discriminant"}
    assert only_full & columns == (only_full if profile == "full" else set())
