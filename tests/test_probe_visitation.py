"""The steps table holds the local and visitation term of the rows that the probe logged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from entropy_lab import Probe, load
from entropy_lab.types import HELD_OUT
from toy import Toy, adamw, batches, run_loop, score_of

COLUMNS = [f"{n}_{s}" for s in ("train", "heldout") for n in ("local", "visitation", "effective")]


def by_loop(rows: pd.DataFrame, group_size: int) -> tuple[float, float, float]:
    """(local, visitation, effective) of one step's token rows, one response after the other."""
    responses = []
    for uid, tokens in rows.groupby("uid"):
        t = tokens.sort_values("pos").to_dict("list")
        ratio = math.exp(sum(t["logp"]) - sum(t["old_logp"]))
        left = [sum(t["entropy"][u + 1 :]) for u in range(len(t["pos"]))]
        responses.append((uid, ratio, sum(t["dH"]), t["dlogp"], left))
    sums = [0.0] * 4
    for uid, w, local, push, left in responses:
        term = 0.0
        for u, (dlogp, togo) in enumerate(zip(push, left, strict=True)):
            there = [r for r in responses if r[0] != uid and len(r[4]) > u]
            near = [r for r in there if r[0] // group_size == uid // group_size] or there
            weight = sum(r[1] for r in near)
            b = sum(r[1] * r[4][u] for r in near) / weight if near else 0.0
            term += dlogp * (togo - b)
        for k, value in enumerate((w, w * w, w * local, w * term)):
            sums[k] += value
    return sums[2] / sums[0], sums[3] / sums[0], sums[0] ** 2 / sums[1]


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("size", [4, 16])
def test_the_terms_of_a_step_are_those_of_its_token_rows(
    tmp_path: Path, size: int, fraction: float
) -> None:
    """However the step is split; a quarter of each micro-batch of four leaves no group of two."""
    model = Toy()
    run_loop(model, adamw(model), tmp_path / "run", size=size, held_out=True, fraction=fraction)
    run = load(tmp_path / "run")
    tokens, steps = run.tokens(), run.steps().set_index("step")
    held = (tokens["flags"] & HELD_OUT) > 0
    for step, row in steps.iterrows():
        here = tokens["step"] == step
        for side, rows in (("train", tokens[here & ~held]), ("heldout", tokens[here & held])):
            local, visitation, effective = by_loop(rows, group_size=4)
            assert row[f"local_{side}"] == pytest.approx(local, rel=1e-4)
            assert row[f"visitation_{side}"] == pytest.approx(visitation, rel=1e-3, abs=1e-6)
            assert row[f"effective_{side}"] == pytest.approx(effective, rel=1e-4)
            assert effective < rows["uid"].nunique(), "the toy's old policy is another one"


def test_responses_are_weighted_by_their_inclusion_probability(tmp_path: Path) -> None:
    """Micro-batches of 12 and 4 at a fraction of 1/8: chances 1/6 and 1/4."""
    model = Toy()
    optimizer = adamw(model)
    rows, batch = batches(model, 1, 16)[0]
    batch = replace(batch, old_logp=score_of(model)(rows).logp.detach())
    cuts = [slice(0, 12), slice(12, 16)]
    micros = [(type(rows)(rows.ids[c].clone()), batch.rows(c)) for c in cuts]
    with Probe(model, optimizer, tmp_path / "run", score_of(model), fraction=1 / 8) as probe:
        for part in micros:
            stats = probe.record(*part)
            (-(stats.logp * part[1].advantage * part[1].mask).sum()).backward()
        optimizer.step()
    run = load(tmp_path / "run")
    sums = run.tokens().groupby(["micro", "uid"])["dH"].sum()
    first, second = sums.loc[0], sums.loc[1]
    assert (len(first), len(second)) == (2, 1)
    step = run.steps().iloc[0]
    mean = (6 * first.sum() + 4 * second.sum()) / (6 + 6 + 4)
    assert step["local_train"] == pytest.approx(mean, rel=1e-4)
    assert step["effective_train"] == pytest.approx(16**2 / (36 + 36 + 16), rel=1e-6)


def test_without_groups_the_baseline_is_the_batch(tmp_path: Path) -> None:
    model = Toy()
    optimizer = adamw(model)
    rows, batch = batches(model, 1, 16)[0]
    with Probe(model, optimizer, tmp_path / "run", score_of(model)) as probe:
        bare = replace(batch, group=None)
        (-(probe.record(rows, bare).logp * bare.advantage * bare.mask).sum()).backward()
        optimizer.step()
    run = load(tmp_path / "run")
    local, visitation, _ = by_loop(run.tokens(), group_size=16)
    assert run.steps()["local_train"][0] == pytest.approx(local, rel=1e-4)
    assert run.steps()["visitation_train"][0] == pytest.approx(visitation, rel=1e-3)


def test_a_step_that_does_not_move_has_terms_of_exactly_zero(tmp_path: Path) -> None:
    model = Toy()
    run_loop(model, adamw(model, lr=0.0), tmp_path / "run", held_out=True)
    steps = load(tmp_path / "run").steps()
    for name in ("local", "visitation"):
        assert (steps[f"{name}_train"] == 0.0).all() and (steps[f"{name}_heldout"] == 0.0).all()


def test_terms_are_empty_where_nothing_was_measured(tmp_path: Path) -> None:
    """The fixed set is no held-out set here: the policy that sampled it is a whole run away."""
    model = Toy()
    optimizer = adamw(model)
    with Probe(model, optimizer, tmp_path / "run", score_of(model), every=2) as probe:
        probe.fix(batches(model, 77, 16))
        for seed in range(2):
            rows, batch = batches(model, seed, 16)[0]
            (-(probe.record(rows, batch).logp * batch.mask).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    first, second = (row for _, row in load(tmp_path / "run").steps().iterrows())
    assert first[COLUMNS[:3]].notna().all() and first[COLUMNS[3:]].isna().all()
    assert second[COLUMNS].isna().all()


def test_one_impossible_token_costs_its_response_and_no_more(tmp_path: Path) -> None:
    """A token whose logit is -inf has no dlogp: its response weighs nothing."""
    model = Toy()
    optimizer = adamw(model)
    rows, batch = batches(model, 1, 16)[0]
    plain = score_of(model)

    def score(inputs):
        stats = plain(inputs)
        gone = torch.zeros_like(stats.logp)
        gone[3, 0] = -math.inf
        return replace(stats, logp=stats.logp + gone)

    batch = replace(batch, old_logp=plain(rows).logp.detach())
    with Probe(model, optimizer, tmp_path / "run", score) as probe:
        stats = probe.record(rows, batch)
        (-(stats.logp[:3] * batch.mask[:3]).sum() + 0 * stats.entropy.sum()).backward()
        optimizer.step()
    step = load(tmp_path / "run").steps().iloc[0]
    assert step["effective_train"] == pytest.approx(15)
    assert math.isfinite(step["visitation_train"])
