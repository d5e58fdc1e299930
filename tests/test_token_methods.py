"""Methods that pick or weigh tokens by their entropy: against their sources' formulas and grpo."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import policy_loss
from entropy_lab.stats import QUADRANTS
from entropy_lab.types import DUAL_CLIPPED, SELECTED
from plain_losses import assert_parity, ppo, token_mean, touched, wide
from token_examples import example, golden_batch, hand_made, loss_and_grad

CLIP_HIGHER = {"clip_high": 0.28}


def clip_higher(batch, logp: Tensor, advantage: Tensor) -> Tensor:
    return ppo(torch.exp(logp - batch.old_logp), advantage, 0.2, 0.28, 10.0)


@pytest.mark.parametrize("rho", [0.2, 0.35, 1.0])
def test_fork_tokens_is_the_published_mask_over_all_tokens(rho: float) -> None:
    batch, stats = wide()
    entropy = stats.entropy.numpy()
    bar = np.quantile(entropy[batch.mask.numpy()], 1 - rho)
    forks = torch.tensor(entropy >= bar) & batch.mask

    def source(logp: Tensor) -> Tensor:
        return token_mean(clip_higher(batch, logp, batch.advantage) * forks, batch.mask)

    plan = make_method("fork_tokens", rho=rho).plan(batch, stats)
    stopped = batch.mask & ~forks
    assert plan.selected is not None and torch.equal(plan.selected, stopped)
    count = float(stopped.sum())
    assert plan.scalars == {"selected": count, "entropy_threshold": pytest.approx(bar)}
    assert_parity(batch, stats, plan, source)


def test_fork_tokens_on_the_golden_batch_keeps_a_fifth_and_stops_just_the_rest() -> None:
    _, batch, stats = golden_batch()
    plan = make_method("fork_tokens").plan(batch, stats)
    assert plan.selected is not None and plan.scalars is not None
    count = int(batch.mask.sum())
    assert plan.scalars["selected"] == math.ceil(0.8 * (count - 1))
    low = batch.mask & (stats.entropy < plan.scalars["entropy_threshold"])
    differs = touched(batch, stats, "fork_tokens", base=CLIP_HIGHER)
    _, plain = loss_and_grad(batch, stats, make_method("clip_higher").plan(batch, None))
    assert torch.equal(differs, low & (plain != 0))
    assert torch.equal(policy_loss(stats, batch, plan).flags & SELECTED != 0, plan.selected)


def test_fork_tokens_by_hand_ignores_padding_and_keeps_ties() -> None:
    batch, stats = hand_made([1.0] * 6, [-1.0] * 6)
    entropy = torch.tensor([[0.5, 2.0, 0.1, 2.0, 1.0, 9.0]]).double()
    stats = replace(stats, entropy=entropy)
    batch = replace(batch, mask=torch.tensor([[True] * 5 + [False]]))
    # Five values: the 0.8 quantile sits at place 3.2, between 2.0 and 2.0.
    plan = make_method("fork_tokens").plan(batch, stats)
    assert plan.selected is not None
    assert plan.selected.tolist() == [[True, False, True, False, True, False]]
    loss, grad = loss_and_grad(batch, stats, plan)
    assert loss == pytest.approx(-2 / 5)
    assert grad[0].tolist() == pytest.approx([0, -0.2, 0, -0.2, 0, 0])
    # 0.5 (2.0 - 1.0) above place 2: place 2.5 of the 0.625 quantile.
    plan = make_method("fork_tokens", rho=0.375).plan(batch, stats)
    assert plan.scalars == {"selected": 3.0, "entropy_threshold": 1.5}


def test_fork_tokens_of_a_micro_batch_are_its_own() -> None:
    _, batch, stats = example(rows=8)
    parts = [slice(0, 4), slice(4, 8)]
    batches, known = [batch.rows(p) for p in parts], [stats.rows(p) for p in parts]
    thresholds = {}
    for scope in ("minibatch", "microbatch"):
        plans = plan_step(make_method("fork_tokens", scope=scope), batches, known)
        thresholds[scope] = [(plan.scalars or {})["entropy_threshold"] for plan, _ in plans]
    assert len(set(thresholds["minibatch"])) == 1
    for part, s, found in zip(batches, known, thresholds["microbatch"], strict=True):
        assert found == pytest.approx(np.quantile(s.entropy[part.mask].numpy(), 0.8))


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.05, "kappa": 1.01}, {"alpha": 0.0}])
def test_entropy_advantage_changes_the_advantage_before_the_clips(settings: dict) -> None:
    batch, stats = wide(rows=40)
    batch.advantage[3] = 0.0
    alpha, kappa = settings.get("alpha", 0.4), settings.get("kappa", 2.0)
    a = batch.advantage

    def source(logp: Tensor) -> Tensor:
        shaped = a + torch.min(alpha * stats.entropy.detach(), a.abs() / kappa)
        return token_mean(clip_higher(batch, logp, shaped), batch.mask)

    plan = make_method("entropy_advantage", **settings).plan(batch, stats)
    assert (policy_loss(stats, batch, plan).flags & DUAL_CLIPPED).any()
    assert isinstance(plan.weight, Tensor) and (plan.weight > 0).all()
    assert_parity(batch, stats, plan, source)


def test_entropy_advantage_by_hand_touches_tokens_with_an_advantage_and_an_entropy() -> None:
    batch, stats = hand_made([1.0, -1.0, 0.0, 0.2, -0.2, 1.0], [-1.0] * 6)
    stats = replace(stats, entropy=torch.tensor([[0.5, 0.5, 0.5, 3.0, 3.0, 0.0]]).double())
    # A + min(0.4 H, |A| / 2): the bonus is 0.2, 0.2, 0, 0.1, 0.1, 0.
    plan = make_method("entropy_advantage").plan(batch, stats)
    loss, grad = loss_and_grad(batch, stats, plan)
    shaped = [1.2, -0.8, 0.0, 0.3, -0.1, 1.0]
    assert (-6 * grad[0]).tolist() == pytest.approx(shaped)
    assert loss == pytest.approx(-sum(shaped) / 6)
    assert plan.scalars == {"bonus_mean": pytest.approx(0.6 / 6)}
    differs = touched(batch, stats, "entropy_advantage", base=CLIP_HIGHER)
    assert differs.tolist() == [[True, True, False, True, True, False]]
    assert "re-implementations" in make_method("entropy_advantage").unconfirmed
    assert make_method("grpo").unconfirmed == ""


def test_erc_keeps_the_gradient_where_the_entropy_ratio_is_inside() -> None:
    batch, stats = wide(rows=40)
    spread = torch.linspace(0.85, 1.15, batch.mask.numel()).view(batch.mask.shape).double()
    batch = replace(batch, old_entropy=stats.entropy / spread)

    def detached(logp: Tensor) -> Tensor:
        ratio = (stats.entropy + 1e-8) / (batch.old_entropy + 1e-8)
        inside = (ratio > 0.95) & (ratio < 1.05)
        loss = clip_higher(batch, logp, batch.advantage)
        return token_mean(torch.where(inside, loss, loss.detach()), batch.mask)

    plan = make_method("erc").plan(batch, stats)
    loss, grad = loss_and_grad(batch, stats, plan)
    leaf = stats.logp.clone().requires_grad_()
    released = detached(leaf)
    torch.testing.assert_close(grad, torch.autograd.grad(released, leaf)[0])
    # The released value has the stopped tokens in it, as a constant.
    assert plan.selected is not None
    value = clip_higher(batch, stats.logp, batch.advantage)
    constant = token_mean(value * plan.selected, batch.mask)
    assert loss + float(constant) == pytest.approx(float(released.detach()))

    outside = batch.mask & ((spread <= 0.95) | (spread >= 1.05))
    assert torch.equal(plan.selected, outside)
    _, plain = loss_and_grad(batch, stats, make_method("clip_higher").plan(batch, None))
    differs = touched(batch, stats, "erc", base=CLIP_HIGHER)
    assert torch.equal(differs, outside & (plain != 0)) and differs.any()


def test_erc_bounds_are_strict_and_a_certain_token_keeps_its_gradient() -> None:
    batch, stats = hand_made([1.0] * 5, [-1.0] * 5)
    stats = replace(stats, entropy=torch.tensor([[1.0, 1.5, 0.5, 0.0, 1e-3]]).double())
    batch = replace(batch, old_entropy=torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]).double())
    plan = make_method("erc", entropy_low=0.5, entropy_high=0.5 * (1 - 1e-8)).plan(batch, stats)
    assert plan.selected is not None
    assert plan.selected.tolist() == [[False, True, False, False, True]]
    loss, grad = loss_and_grad(batch, stats, plan)
    assert loss == pytest.approx(-3 / 5)
    assert grad[0].tolist() == pytest.approx([-0.2, 0, -0.2, -0.2, 0])


# A, logp, H by hand: likely means logp > -H.
REGION = {
    "pos_likely": (1.0, -0.5, 1.0),
    "pos_unlikely": (1.0, -2.0, 1.0),
    "neg_likely": (-1.0, -0.5, 1.0),
    "neg_unlikely": (-1.0, -2.0, 1.0),
    "zero": (0.0, -2.0, 1.0),
}


def test_quadrant_weighs_each_region_by_hand() -> None:
    advantage, logp, entropy = zip(*(REGION[name] for name in QUADRANTS), strict=True)
    batch, stats = hand_made(list(advantage), list(logp))
    stats = replace(stats, entropy=torch.tensor([entropy]).double())
    weights = {"pos_likely": 0.5, "pos_unlikely": 2.0, "neg_likely": 3.0, "neg_unlikely": 0.0}
    plan = make_method("quadrant", **weights).plan(batch, stats)
    assert isinstance(plan.weight, Tensor) and plan.weight[0].tolist() == [0.5, 2.0, 3.0, 0.0, 1.0]
    assert plan.scalars == {"weight_mean": pytest.approx(6.5 / 5)}
    loss, grad = loss_and_grad(batch, stats, plan)
    assert (-5 * grad[0]).tolist() == pytest.approx([0.5, 2.0, -3.0, 0.0, 0.0])
    assert loss == pytest.approx(-(0.5 + 2.0 - 3.0) / 5)


@pytest.mark.parametrize("region", QUADRANTS[:4])
def test_quadrant_touches_just_the_region_of_its_weight(region: str) -> None:
    batch, stats = wide(rows=40)
    likely = stats.logp > -stats.entropy
    side = batch.advantage > 0 if region.startswith("pos") else batch.advantage < 0
    here = batch.mask & side & (likely if region.endswith("_likely") else ~likely)
    _, plain = loss_and_grad(batch, stats, make_method("grpo").plan(batch, None))
    differs = touched(batch, stats, "quadrant", **{region: 0.5})
    assert torch.equal(differs, here & (plain != 0)) and differs.any()
    assert not touched(batch, stats, "quadrant").any()
