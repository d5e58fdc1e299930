"""Methods that clip otherwise: against their sources' formulas, golden vectors, and grpo."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import make_method
from entropy_lab.loss import policy_loss
from entropy_lab.types import CLIPPED_HIGH, DUAL_CLIPPED, SELECTED
from plain_losses import assert_parity, ppo, token_mean, touched, wide
from token_examples import golden_batch, hand_made, loss_and_grad


def ratio_of(batch, stats) -> Tensor:
    return torch.exp(stats.logp - batch.old_logp)


@pytest.mark.parametrize("name", ["cispo", "gspo"])
def test_loss_and_gradient_equal_the_golden_vectors(name: str) -> None:
    golden, batch, stats = golden_batch()
    settings = {
        "cispo": {"clip_low": 0.2, "clip_high": 0.28},
        "gspo": {"normaliser": "token_mean"},
    }[name]
    plan = make_method(name, **settings).plan(batch, None)
    loss, grad = loss_and_grad(batch, stats, plan)
    assert loss == pytest.approx(float(golden[f"{name}_loss"]), abs=1e-9)
    np.testing.assert_allclose(grad.numpy(), golden[f"{name}_grad"], rtol=0, atol=1e-9)


def test_clip_lower_is_ppo_with_its_own_lower_clip() -> None:
    batch, stats = wide()

    def source(logp: Tensor) -> Tensor:
        loss = ppo(torch.exp(logp - batch.old_logp), batch.advantage, 0.1, 0.2, 10.0)
        return token_mean(loss, batch.mask)

    assert_parity(batch, stats, make_method("clip_lower", clip_low=0.1).plan(batch, None), source)


def test_clip_lower_stops_just_the_tokens_between_the_two_bounds() -> None:
    batch, stats = wide(rows=100)
    r = ratio_of(batch, stats)
    between = batch.mask & (batch.advantage < 0) & (r >= 0.8) & (r < 0.95)
    assert between.sum() > 5
    assert torch.equal(touched(batch, stats, "clip_lower", clip_low=0.05), between)


@pytest.mark.parametrize("betas", [(0.75, 1.0), (1.0, 1.0), (0.5, 0.25)])
def test_ce_gppo_is_the_released_loss(betas: tuple[float, float]) -> None:
    batch, stats = wide()
    a = batch.advantage

    def source(logp: Tensor) -> Tensor:
        ratio = torch.exp(logp - batch.old_logp)
        push = ratio / ratio.detach()
        low, high = (ratio < 0.8) & (a < 0), (ratio > 1.2) & (a > 0)
        loss = torch.where(low, -betas[0] * 0.8 * push * a, -ratio * a)
        loss = torch.where(high, -betas[1] * 1.2 * push * a, loss)
        return token_mean(torch.where(a < 0, torch.minimum(-10.0 * a, loss), loss), batch.mask)

    method = make_method("ce_gppo", beta1=betas[0], beta2=betas[1])
    assert policy_loss(stats, batch, method.plan(batch, None)).flags.bitwise_and(DUAL_CLIPPED).any()
    assert_parity(batch, stats, method.plan(batch, None), source)


def test_ce_gppo_touches_just_the_clipped_tokens_and_beta_0_is_grpo() -> None:
    batch, stats = wide()
    r, a = ratio_of(batch, stats), batch.advantage
    clipped = batch.mask & (((r < 0.8) & (a < 0)) | ((r > 1.2) & (a > 0)))
    assert torch.equal(touched(batch, stats, "ce_gppo"), clipped)
    assert not touched(batch, stats, "ce_gppo", beta1=0.0, beta2=0.0).any()
    defaults = make_method("ce_gppo").plan(batch, None)
    assert (defaults.beyond_low, defaults.beyond_high, defaults.dual_clip) == (0.75, 1.0, 10.0)


def test_cispo_is_the_clipped_weight_times_logp() -> None:
    batch, stats = wide()

    def source(logp: Tensor) -> Tensor:
        weight = torch.exp(logp - batch.old_logp).clamp(1 - 10.0, 1 + 0.2).detach()
        return token_mean(-weight * batch.advantage * logp, batch.mask)

    assert_parity(batch, stats, make_method("cispo").plan(batch, None), source)


def test_cispo_differs_from_grpo_where_a_clip_of_either_acts() -> None:
    batch, stats = wide()
    r, a = ratio_of(batch, stats), batch.advantage
    acts = batch.mask & ((r > 1.2) | ((r < 0.8) & (a < 0)))
    assert torch.equal(touched(batch, stats, "cispo"), acts)


def test_gspo_is_the_clipped_loss_of_whole_responses() -> None:
    batch, stats = wide()
    batch = replace(batch, old_logp=stats.logp + (batch.old_logp - stats.logp) * 0.1)

    def source(logp: Tensor) -> Tensor:
        # The paper's own objective, on sequences: its gradient is that of GSPO-token.
        losses = []
        for i in range(len(logp)):
            m = batch.mask[i]
            s = torch.exp((logp[i][m] - batch.old_logp[i][m]).mean())
            losses.append(ppo(s, batch.advantage[i, 0], 0.03, 0.04))
        return torch.stack(losses).mean()

    plan = make_method("gspo", clip_low=0.03, clip_high=0.04).plan(batch, None)
    clipped = policy_loss(stats, batch, plan).flags != 0
    assert clipped.any() and not clipped[batch.mask].all()
    assert_parity(batch, stats, plan, source)


def test_gspo_is_grpo_for_a_response_of_one_token_and_the_same_for_all_tokens_of_a_longer_one():
    batch, stats = wide()
    mask = batch.mask.clone()
    mask[::2, 1:] = False
    batch = replace(batch, mask=mask)
    free = {"clip_low": math.inf, "clip_high": math.inf, "normaliser": "seq_mean"}
    differs = touched(batch, stats, "gspo", base={**free, "dual_clip": math.inf}, **free)
    assert torch.equal(differs, mask & (mask.sum(1) > 1)[:, None])
    defaults = make_method("gspo").plan(batch, None)
    assert (defaults.clip_low, defaults.clip_high) == (3e-4, 4e-4)
    assert (defaults.normaliser, defaults.dual_clip) == ("seq_mean", math.inf)


def dppo_source(batch, logp: Tensor, kind: str, delta: float, c: float) -> Tensor:
    """As verl writes it, with its epsilon."""
    prob, old_prob = torch.exp(logp), torch.exp(batch.old_logp)
    if kind == "dppo_tv":
        positive, negative = prob - old_prob <= delta, prob - old_prob >= -delta
    else:
        kl = old_prob * (batch.old_logp - logp) + (1 - old_prob) * torch.log(
            (1 - old_prob + 1e-8) / (1 - prob + 1e-8)
        )
        positive = (kl <= delta) | (prob <= old_prob)
        negative = (kl <= delta) | (prob >= old_prob)
    valid = torch.where(batch.advantage > 0, positive, negative).detach()
    weight = torch.exp(logp - batch.old_logp).clamp(max=c).detach()
    return token_mean(-batch.advantage * weight * logp * valid, batch.mask)


@pytest.mark.parametrize(("name", "delta"), [("dppo_tv", 0.15), ("dppo_kl", 0.05)])
@pytest.mark.parametrize("c", [20.0, 1.5])
def test_dppo_is_the_released_loss(name: str, delta: float, c: float) -> None:
    batch, stats = wide(rows=40)
    plan = make_method(name, c=c).plan(batch, stats)
    flags = policy_loss(stats, batch, plan).flags
    assert (flags & SELECTED).any() and (flags & CLIPPED_HIGH).any()
    assert_parity(batch, stats, plan, lambda logp: dppo_source(batch, logp, name, delta, c))


# pi from pi_old by hand. TV: 0.3, 0.05, 0.3, 0.05; binary KL(0.5, 0.8) = 0.223, (0.05, 0.1) =
# 0.0167, (0.5, 0.2) = 0.223, (0.1, 0.05) = 0.0206 nats.
NEW, OLD = [0.8, 0.1, 0.2, 0.05], [0.5, 0.05, 0.5, 0.1]


@pytest.mark.parametrize(
    ("name", "delta", "sign", "dropped"),
    [
        ("dppo_tv", 0.15, 1.0, [True, False, False, False]),
        ("dppo_tv", 0.15, -1.0, [False, False, True, False]),
        ("dppo_tv", 0.04, 1.0, [True, True, False, False]),
        ("dppo_tv", 0.31, 1.0, [False] * 4),
        ("dppo_kl", 0.05, 1.0, [True, False, False, False]),
        ("dppo_kl", 0.05, -1.0, [False, False, True, False]),
        ("dppo_kl", 0.016, 1.0, [True, True, False, False]),
        ("dppo_kl", 0.0205, -1.0, [False, False, True, True]),
        ("dppo_kl", 0.0207, -1.0, [False, False, True, False]),
        ("dppo_kl", 0.224, 1.0, [False] * 4),
    ],
)
def test_dppo_drops_by_hand(name: str, delta: float, sign: float, dropped: list[bool]) -> None:
    logs = [[math.log(p) for p in probabilities] for probabilities in (NEW, OLD)]
    batch, stats = hand_made([sign] * 4, logs[0], old=logs[1])
    plan = make_method(name, delta=delta).plan(batch, stats)
    assert plan.selected is not None and plan.selected[0].tolist() == dropped
    loss, grad = loss_and_grad(batch, stats, plan)
    kept = ~torch.tensor([dropped])
    weight = torch.tensor([[n / o for n, o in zip(NEW, OLD, strict=True)]]).double() * kept / 4
    torch.testing.assert_close(grad, -sign * weight)
    assert loss == pytest.approx(float((-sign * weight * stats.logp).sum()))


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl"])
def test_dppo_differs_from_grpo_where_one_of_them_stops_the_token_alone(name: str) -> None:
    # Every pair of these probabilities, once with A = 1 and once with A = -1.
    grid = torch.tensor([0.005, 0.02, 0.1, 0.3, 0.6, 0.8, 0.98]).double().log()
    new, old = torch.cartesian_prod(grid, grid).T.tolist()
    batch, stats = hand_made([1.0] * 49 + [-1.0] * 49, new * 2, old=old * 2)
    r, a = ratio_of(batch, stats), batch.advantage
    clipped = ((r < 0.8) & (a < 0)) | ((r > 1.2) & (a > 0)) | ((r > 10) & (a < 0))
    dropped = make_method(name, c=math.inf).plan(batch, stats).selected
    assert dropped is not None
    alone = clipped ^ dropped
    assert (alone & dropped).any() and (alone & clipped).any() and (clipped & dropped).any()
    assert torch.equal(touched(batch, stats, name, c=math.inf), alone)
    # A token on its way back to its old probability is never dropped.
    assert not (dropped & ((a > 0) == (r < 1))).any()
