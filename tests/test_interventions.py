"""Methods against golden vectors, autograd on a leaf, and selections made by hand."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import Grpo, make_method
from entropy_lab.loss import policy_loss
from entropy_lab.stats import token_stats
from entropy_lab.types import CLIPPED_HIGH, CLIPPED_LOW, SELECTED, TokenPlan
from token_examples import (
    EVERY_METHOD,
    assert_same_plan,
    example,
    golden_batch,
    hand_made,
    loss_and_grad,
)


@pytest.mark.parametrize(
    ("key", "name", "params", "tolerance"),
    [
        ("grpo_{}", "grpo", {}, 1e-9),
        ("clip_higher_{}", "clip_higher", {}, 1e-9),
        ("dual_clip3_{}", "grpo", {"dual_clip": 3.0}, 1e-9),
        ("clip_cov_all_{}", "clip_cov", {"lb": 0.3, "ub": 2.0, "ratio": 1.0}, 1e-9),
        ("kl_cov_{}", "kl_cov", {"ratio": 0.02}, 1e-9),
        ("steer_{}_exp08", "steer", {"omega": "steer_released", "lambda_min": 0.8}, 1e-6),
    ],
)
def test_loss_and_gradient_equal_the_golden_vectors(
    key: str, name: str, params: dict[str, Any], tolerance: float
) -> None:
    golden, batch, stats = golden_batch()
    loss, grad = loss_and_grad(batch, stats, make_method(name, **params).plan(batch, stats))
    assert loss == pytest.approx(float(golden[key.format("loss")]), abs=tolerance)
    np.testing.assert_allclose(grad.numpy(), golden[key.format("grad")], rtol=0, atol=tolerance)


def test_advantages_equal_the_golden_ones_and_are_zero_in_padding() -> None:
    golden, batch, _ = golden_batch()
    found = make_method("grpo").advantages(batch).numpy()
    kept = golden["mask"] > 0
    np.testing.assert_allclose(found[kept], golden["advantage_grpo"][kept], rtol=0, atol=1e-9)
    assert (found[~kept] == 0).all()


@pytest.mark.parametrize(("name", "params"), EVERY_METHOD)
def test_gradient_by_hook_equals_autograd_on_a_leaf(name: str, params: dict[str, Any]) -> None:
    logits, batch, known = example()
    plan = make_method(name, **params).plan(batch, known)
    stats = token_stats(logits.clone().requires_grad_(), batch.token_id)
    seen: dict[str, Tensor] = {}
    stats.logp.register_hook(lambda g: seen.update(logp=g))
    stats.entropy.register_hook(lambda g: seen.update(entropy=g))
    output = policy_loss(stats, batch, plan)
    output.loss.backward()
    leaves = (known.logp.clone().requires_grad_(), known.entropy.clone().requires_grad_())
    loss = policy_loss(replace(known, logp=leaves[0], entropy=leaves[1]), batch, plan).loss
    by_leaf = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert torch.equal(seen["logp"], by_leaf[0])
    assert (seen["logp"] != 0).any() and (seen["logp"][~batch.mask] == 0).all()
    if plan.entropy_coef:
        bonus = plan.entropy_coef * batch.mask.double() / batch.mask.sum()
        torch.testing.assert_close(-seen["entropy"], bonus)
        assert torch.equal(seen["entropy"], by_leaf[1])
    else:
        assert by_leaf[1] is None


@pytest.mark.parametrize(("name", "params"), EVERY_METHOD)
def test_a_plan_ignores_what_the_padding_holds(name: str, params: dict[str, Any]) -> None:
    _, batch, stats = example()
    spoil = stats.map(lambda x: x.masked_fill(~batch.mask, float("nan")))
    dirty = replace(
        batch,
        old_logp=batch.old_logp.masked_fill(~batch.mask, float("nan")),
        advantage=batch.advantage.masked_fill(~batch.mask, float("nan")),
    )
    method = make_method(name, **params)
    assert_same_plan(method.plan(dirty, spoil), method.plan(batch, stats))


def test_plans_without_statistics_hold_the_published_numbers() -> None:
    _, batch, _ = example()
    grpo, higher = make_method("grpo"), make_method("clip_higher")
    assert grpo.needs == higher.needs == frozenset()
    plan = grpo.plan(batch, None)
    assert (plan.clip_low, plan.clip_high, plan.dual_clip) == (0.2, 0.2, 10.0)
    assert plan.normaliser == "token_mean" and plan.weight == 1.0 and plan.entropy_coef == 0.0
    plan = higher.plan(batch, None)
    assert (plan.clip_low, plan.clip_high, plan.dual_clip) == (0.2, 0.28, 10.0)
    plan = make_method("entropy_bonus", beta=0.02).plan(batch, None)
    assert plan.entropy_coef == 0.02 and plan.scalars == {"entropy_coef": 0.02}
    plan = make_method("grpo", normaliser="constant", constant_length=7).plan(batch, None)
    assert (plan.normaliser, plan.constant_length) == ("constant", 7)


# Means are 0 in these examples, so cov = A * logp' by eye: logp' = logp - mean logp.
def test_clip_cov_drops_only_tokens_strictly_between_its_bounds() -> None:
    # cov:       2       -2      1       -1     0.5     -0.5    0
    batch, stats = hand_made([1, -1, 1, -1, 1, -1, 0], [-3, -3, -4, -4, -4.5, -4.5, -12])
    mean = float(stats.logp.mean())
    cov = batch.advantage * (stats.logp - mean)
    assert cov[0, 0] == pytest.approx(2.0) and cov[0, 4] == pytest.approx(0.5)
    method = make_method("clip_cov", lb=0.4, ub=1.5, ratio=1.0)
    plan = method.plan(batch, stats)
    assert plan.selected is not None and isinstance(plan.mask, Tensor)
    assert plan.selected.tolist() == [[False, False, True, False, True, False, False]]
    assert plan.mask.tolist() == [[True, True, False, True, False, True, True]]
    assert plan.scalars == {"selected": 2.0, "candidates": 2.0}
    assert plan.dual_clip == math.inf
    torch.testing.assert_close(plan.omega, cov)
    # Both bounds are strict: cov of exactly lb or ub stays.
    at_lb, at_ub = float(plan.omega[0, 4]), float(plan.omega[0, 2])
    strict = replace(method, lb=at_lb, ub=at_ub).plan(batch, stats)  # type: ignore[call-arg]
    assert strict.scalars == {"selected": 0.0, "candidates": 0.0}


def test_clip_cov_counts_over_valid_tokens_and_keeps_them_in_the_denominator() -> None:
    advantage = [1.0] * 5 + [-1.0] * 5
    batch, stats = hand_made(advantage, [-1.0] * 5 + [-2.0] * 5)  # cov 0.5 everywhere
    for ratio, count in ((1e-3, 1), (0.1, 1), (0.39, 3), (0.4, 4), (1.0, 10)):
        plan = make_method("clip_cov", lb=0.4, ub=1.0, ratio=ratio).plan(batch, stats)
        assert plan.scalars == {"selected": float(count), "candidates": 10.0}
    plan = make_method("clip_cov", lb=0.4, ub=1.0, ratio=0.4).plan(batch, stats)
    _, grad = loss_and_grad(batch, stats, plan)
    assert plan.selected is not None
    expected = torch.where(plan.selected, 0.0, -batch.advantage / 10)  # r = 1
    torch.testing.assert_close(grad, expected)
    flags = policy_loss(stats, batch, plan).flags
    assert torch.equal((flags & SELECTED) != 0, plan.selected)


def test_clip_cov_never_draws_a_token_that_the_ratio_clip_stops() -> None:
    # r = e^0.5 for the second token (A > 0) and e^-0.5 for the third (A < 0): both stopped.
    advantage, logp = [1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, -2.0, -2.0]
    batch, stats = hand_made(advantage, logp, old=[-1.0, -1.5, -1.5, -2.0])
    plan = make_method("clip_cov", lb=0.4, ub=1.0, ratio=1.0).plan(batch, stats)
    assert plan.selected is not None
    assert plan.selected.tolist() == [[True, False, False, True]]
    wide = make_method("clip_cov", lb=0.4, ub=1.0, ratio=1.0, clip_low=1.0, clip_high=1.0)
    assert wide.plan(batch, stats).scalars == {"selected": 4.0, "candidates": 4.0}


def test_methods_and_loss_agree_on_which_tokens_are_clipped() -> None:
    _, batch, stats = example(rows=40)
    method = Grpo(clip_low=0.1, clip_high=0.3)
    flags = policy_loss(stats, batch, method.plan(batch, None)).flags
    clipped = (flags & (CLIPPED_HIGH | CLIPPED_LOW)) != 0
    assert 20 < clipped.sum() < 0.5 * batch.mask.sum()
    assert torch.equal(method._beyond(batch, stats) & batch.mask, clipped)


def test_kl_cov_penalises_the_top_tokens_only_and_clips_nothing() -> None:
    # mean logp -2 and mean A 0, so cov: 3, 1, 2.5, 1.5
    batch, stats = hand_made([3, 1, -2.5, -1.5], [-1, -1, -3, -3], old=[-3.0, -1, -1, -1])
    plan = make_method("kl_cov", ratio=0.5, k=0.3).plan(batch, stats)
    assert plan.selected is not None
    assert plan.selected.tolist() == [[True, False, True, False]]
    assert plan.clip_low == plan.clip_high == plan.dual_clip == math.inf
    assert plan.scalars == {"selected": 2.0, "cov_threshold": 2.5}
    loss, grad = loss_and_grad(batch, stats, plan)
    ratio = np.exp(np.array([2.0, 0.0, -2.0, -2.0]))
    value = -ratio * np.array([3, 1, -2.5, -1.5])
    penalty = 0.3 * np.array([2.0, 0.0, 2.0, 0.0])
    assert loss == pytest.approx((value + penalty).mean())
    slope = value + 0.3 * np.array([1.0, 0.0, -1.0, 0.0])
    np.testing.assert_allclose(grad[0].numpy(), slope / 4, rtol=1e-12)


def test_kl_cov_is_inert_exactly_on_policy() -> None:
    _, batch, stats = example()
    batch = replace(batch, old_logp=stats.logp)
    plan = make_method("kl_cov", ratio=0.3).plan(batch, stats)
    _, grad = loss_and_grad(batch, stats, plan)
    _, plain = loss_and_grad(batch, stats, TokenPlan())
    torch.testing.assert_close(grad, plain)


def test_an_empty_response_gets_no_weight_and_breaks_nothing() -> None:
    _, batch, stats = example()
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    for name, params in EVERY_METHOD:
        plan = make_method(name, **params).plan(empty, stats)
        if plan.selected is not None:
            assert not plan.selected.any()
    weight = make_method("steer").plan(empty, stats).weight
    assert isinstance(weight, Tensor) and (weight == 0).all()


def test_plans_are_detached_from_the_statistics() -> None:
    logits, batch, _ = example()
    stats = token_stats(logits.requires_grad_(), batch.token_id)
    for name, params in EVERY_METHOD:
        plan = make_method(name, **params).plan(batch, stats)
        for f in fields(TokenPlan):
            value = getattr(plan, f.name)
            assert not (isinstance(value, Tensor) and value.requires_grad), (name, f.name)
