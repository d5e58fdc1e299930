"""Deep steps and the noise floor through the probe and the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from entropy_lab import Probe, load
from entropy_lab.types import HELD_OUT
from toy import Toy, adamw, batches, run_loop, score_of

FORMS = [f"dH_pred_{n}" for n in ("head", "last_block", "jvp", "second_order", "slope")]


def own(run):
    tokens = run.tokens()
    return tokens[(tokens["flags"] & HELD_OUT) == 0]


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_deep_step_explains_what_was_measured(tmp_path: Path, fraction: float) -> None:
    model = Toy(dtype=torch.float64)
    options = {"clip": 0.5, "held_out": True, "fraction": fraction}
    run_loop(model, adamw(model, 1e-3), tmp_path / "run", deep_every=2, steps=3, **options)
    run = load(tmp_path / "run")
    steps = run.steps().set_index("step")
    assert steps["G_dtheta"].notna().tolist() == [True, False, True]
    assert steps["identity_error"].max() < 1e-9
    tokens = own(run)
    deep = tokens[tokens["step"] != 1]
    assert tokens.loc[tokens["step"] == 1, FORMS + ["influence"]].isna().all(axis=None)
    assert deep[FORMS + ["influence", "influence_marginal"]].notna().all(axis=None)
    for step, rows in deep.groupby("step"):
        assert np.corrcoef(rows["dH_pred_jvp"], rows["dH"])[0, 1] > 0.999
        rest = rows["dH"] - rows["dH_pred_jvp"] - rows["dH_pred_second_order"]
        assert rest.abs().max() < 0.1 * (rows["dH"] - rows["dH_pred_jvp"]).abs().max() + 1e-9
        row = steps.loc[step]
        if fraction == 1.0:
            # Influence is the whole update's; without sampling its rows are all in the log.
            assert rows["influence"].sum() == pytest.approx(row["influence_sum"], rel=1e-5)
            assert row["dH_pred_jvp"] == pytest.approx(row["G_dtheta"], rel=1e-6)
        total = row["influence_sum"] + row["momentum_term"] + row["decay_term"]
        assert total + row["other_term"] == pytest.approx(row["G_dtheta"], rel=1e-9)
        layers = sum(row[c] for c in steps if c.startswith("layer_") or c == "layer_head")
        assert layers == pytest.approx(row["G_dtheta"], rel=1e-9)


def test_the_logged_error_covers_the_two_point_slopes_error(tmp_path: Path) -> None:
    model = Toy(dtype=torch.float32)
    run_loop(model, adamw(model, 1e-2), tmp_path / "run", deep_every=1, steps=6)
    tokens = own(load(tmp_path / "run"))
    error = (tokens["dH_pred_slope"] - tokens["dH_pred_jvp"]).abs()
    assert (error <= tokens["slope_error"]).mean() >= 0.95
    # It says something: it is far below what it bounds.
    assert tokens["slope_error"].median() < 0.2 * tokens["dH"].abs().median()


def test_finite_differences_stand_in_for_forward_mode(tmp_path: Path) -> None:
    found = {}
    for jvp in ("forward", "slope"):
        model = Toy(dtype=torch.float64)
        run_loop(model, adamw(model, 1e-3), tmp_path / jvp, deep_every=1, jvp=jvp)
        found[jvp] = own(load(tmp_path / jvp)).set_index(["step", "uid", "pos"])
    exact, slope = found["forward"], found["slope"]
    close = (slope["dH_pred_jvp"] - exact["dH_pred_jvp"]).abs() <= exact["slope_error"] + 1e-9
    assert close.mean() >= 0.95
    size = exact["influence"].abs().max()
    assert (slope["influence"] - exact["influence"]).abs().max() < 1e-5 * size


class LowRank(nn.Module):
    """A frozen linear layer with a trainable correction of rank 2 beside it, as LoRA has."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        dtype = base.weight.dtype
        generator = torch.Generator().manual_seed(1)
        down = torch.randn(2, base.in_features, generator=generator, dtype=torch.float64)
        self.down = nn.Parameter(0.3 * down.to(dtype))
        self.up = nn.Parameter(torch.full((base.out_features, 2), 0.1, dtype=dtype))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("snapshots", [None, "cpu"])
def test_adapters_on_a_frozen_model_are_taken_apart_too(tmp_path: Path, snapshots) -> None:
    """The head is frozen: it has no share, and everything adds up over the adapters."""
    model = Toy(dtype=torch.float64)
    for p in model.parameters():
        p.requires_grad_(False)
    model.mix = LowRank(model.mix)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    rows, batch = batches(model, 1, 16, torch.float64)[0]
    options = {"deep_every": 1, "floor_every": 1, "snapshots": snapshots}
    with Probe(model, optimizer, tmp_path / "run", score_of(model), **options) as probe:
        (-(probe.record(rows, batch).logp * batch.advantage * batch.mask).mean()).backward()
        optimizer.step()
    run = load(tmp_path / "run")
    row, tokens = run.steps().iloc[0], own(run)
    assert row["identity_error"] < 1e-6 and row["gradient_audit"] < 1e-9
    assert row["moved_share"] == 1.0
    assert (tokens["dH_pred_head"] == 0).all() and (tokens["dH_pred_last_block"] == 0).all()
    assert np.corrcoef(tokens["dH_pred_jvp"], tokens["dH"])[0, 1] > 0.999
    assert tokens["influence"].sum() == pytest.approx(row["influence_sum"], rel=1e-5)


@pytest.mark.parametrize("entropy_of", ["train", "held_out", "fixed"])
def test_influence_refers_to_the_rows_that_were_asked_for(tmp_path: Path, entropy_of: str) -> None:
    """G . delta is the first-order change of exactly that mean."""
    model = Toy(dtype=torch.float64)
    optimizer = adamw(model, 1e-6)
    score = score_of(model)
    rows, batch = batches(model, 1, 16, torch.float64)[0]
    with Probe(
        model, optimizer, tmp_path / "run", score, deep_every=1, entropy_of=entropy_of
    ) as probe:
        probe.fix(batches(model, 2, 16, torch.float64))
        (-(probe.record(rows, batch).logp * batch.advantage * batch.mask).mean()).backward()
        probe.hold_out(batches(model, 3, 16, torch.float64))
        probe.note(kappa=1.0)
        optimizer.step()
    row = load(tmp_path / "run").steps().iloc[0]
    mean = {"train": "dH_train", "held_out": "dH_heldout", "fixed": "dH_fixed"}[entropy_of]
    assert row["G_dtheta"] == pytest.approx(row[mean], rel=1e-3)
    others = {"dH_train", "dH_heldout", "dH_fixed"} - {mean}
    assert all(row["G_dtheta"] != pytest.approx(row[o], rel=1e-2) for o in others)


def test_an_optimizer_that_cannot_be_taken_apart_is_refused_at_once(tmp_path: Path) -> None:
    model = Toy()
    optimizer = torch.optim.RMSprop(model.parameters())
    with pytest.raises(ValueError, match="RMSprop: it supports SGD .* set deep_every=0"):
        Probe(model, optimizer, tmp_path / "run", score_of(model), deep_every=1)
    assert not (tmp_path / "run").exists()


def test_the_floor_in_float32_is_rounding_and_in_float64_nothing(tmp_path: Path) -> None:
    floors = {}
    for dtype in (torch.float32, torch.float64):
        model = Toy(dtype=dtype)
        run_loop(model, adamw(model), tmp_path / str(dtype), floor_every=1)
        floors[dtype] = load(tmp_path / str(dtype)).steps()["floor"]
    assert 0 < floors[torch.float32].max() <= 3e-6
    assert floors[torch.float64].max() <= 1e-12


def test_a_planted_noise_is_reported_within_a_fifth(tmp_path: Path) -> None:
    """Noise of rms 1e-4 in dH: independent noise of 1e-4/sqrt(2) in each float32 entropy."""
    model = Toy()
    optimizer = adamw(model)
    plain = score_of(model)
    generator = torch.Generator().manual_seed(0)

    def noisy(rows):
        stats = plain(rows)
        if stats.entropy.dtype == torch.float64:
            return stats
        noise = torch.randn(stats.entropy.shape, generator=generator) * 1e-4 / 2**0.5
        return replace(stats, entropy=stats.entropy + noise)

    floors = []
    with Probe(model, optimizer, tmp_path / "run", noisy, floor_every=1) as probe:
        for step in range(24):
            rows, batch = batches(model, step, 16)[0]
            (-(probe.record(rows, batch).logp * batch.advantage * batch.mask).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    steps = load(tmp_path / "run").steps()
    floors = np.sqrt(np.average(steps["floor"] ** 2, weights=steps["floor_rows"]))
    assert floors == pytest.approx(1e-4, rel=0.2)
    # Noise of the pass also shows in the repeat check, which a healthy path passes with 0.
    assert steps["repeat_max"].min() > 1e-5


def test_the_floor_of_a_transformer_keeps_float64_throughout(tmp_path: Path) -> None:
    """Its norms and angles ask for float32; the reference must not follow them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from entropy_lab.probe.floor import entropy64
    from entropy_lab.stats import token_stats

    config = Qwen2Config(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    ids = torch.randint(16, (2, 12))

    def score(ids):
        return token_stats(model(input_ids=ids).logits[:, 4:-1], ids[:, 5:])

    theta = {n: p.detach() for n, p in model.named_parameters()}
    found = entropy64(model, score, ids, theta)
    assert found.dtype == torch.float64
    # A perturbation far below float32's resolution moves it smoothly: double all the way.
    h = 1e-10
    up, down = (
        entropy64(model, score, ids, {n: p.double() * (1 + s * h) for n, p in theta.items()})
        for s in (1, -1)
    )
    far = [
        entropy64(model, score, ids, {n: p.double() * (1 + s * 1e-6) for n, p in theta.items()})
        for s in (1, -1)
    ]
    slope, reference = (up - down) / (2 * h), (far[0] - far[1]) / 2e-6
    assert (slope - reference).abs().max() < 1e-3 * reference.abs().max()
