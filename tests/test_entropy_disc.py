"""Clip_B and Clip_V: discriminants set by hand, so that mean and deviation are known by eye."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import make_method
from entropy_lab.types import TokenBatch, TokenStats
from token_examples import differs_from, example, hand_made, loss_and_grad

LOGP = [-0.5, -1.0, -2.0, -0.25, -3.0, -1.5, -0.75, -1.25]


def batch_of(advantage: list[float], surprise: list[float]) -> tuple[TokenBatch, TokenStats]:
    """Tokens with these S_a under both the old and the present policy: S = pi (log pi + H)."""
    batch, stats = hand_made(advantage, LOGP[: len(advantage)])
    values = torch.tensor([surprise], dtype=torch.float64)
    entropy = values / stats.logp.exp() - stats.logp
    return replace(batch, old_entropy=entropy), replace(stats, entropy=entropy)


def vocab_of(advantage: list[float], distance: list[float]) -> tuple[TokenBatch, TokenStats]:
    """Tokens with these D: S_a = 0 and E[S] = m1 + H m0 = m1."""
    batch, stats = batch_of(advantage, [0.0] * len(advantage))
    none = torch.zeros_like(stats.logp)
    return batch, replace(stats, m0=none, m1=torch.tensor([distance], dtype=torch.float64))


def chosen(plan) -> list[int]:
    assert torch.equal(plan.mask, ~plan.selected)
    return plan.selected[0].nonzero().flatten().tolist()


# mean 0, variance 4/8, so sigma = 0.707
SURPRISE = [1.0, -1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_clip_b_loss_and_gradient_by_hand() -> None:
    advantage = [-2.0, -2.0, 1.0, 1.0, -1.0, 3.0, 0.0, 0.5]
    batch, stats = batch_of(advantage, SURPRISE)
    method = make_method("entropy_disc_batch", mu=1.0)
    state = method.begin_rollout(batch, None, method.initial_state())
    assert state == pytest.approx({"disc_mean": 0.0, "disc_std": 0.5**0.5})
    plan = method.plan(batch, None, state)
    # Token 1 alone: token 2 has as low an S but A > 0, token 0 has A < 0 but a high S.
    assert chosen(plan) == [1] and plan.scalars == {"selected": 1.0}
    torch.testing.assert_close(plan.omega, torch.tensor([SURPRISE], dtype=torch.float64))
    kept = torch.tensor([[a if i != 1 else 0.0 for i, a in enumerate(advantage)]])
    loss, grad = loss_and_grad(batch, stats, plan)
    assert loss == pytest.approx(-(2.5) / 7, abs=1e-15)  # the sum of the kept A is 2.5
    torch.testing.assert_close(grad, (-kept / 7).double())  # r = 1


@pytest.mark.parametrize(("mu", "expected"), [(1.4, [1, 2]), (1.42, []), (0.0, [1, 2])])
def test_clip_b_masks_beyond_mu_deviations(mu: float, expected: list[int]) -> None:
    batch, _ = batch_of([-1.0] * 8, SURPRISE)  # 1 / sigma = 1.414
    assert chosen(make_method("entropy_disc_batch", mu=mu).plan(batch, None)) == expected


def test_clip_b_masks_nothing_where_all_discriminants_are_equal() -> None:
    for value in (0.1, -0.1, 0.3):
        batch, _ = batch_of([-1.0] * 8, [value] * 8)
        assert chosen(make_method("entropy_disc_batch", mu=0.0).plan(batch, None)) == []


def test_clip_b_takes_its_moments_from_the_rollout_or_from_the_batch() -> None:
    wide, _ = batch_of([-1.0] * 8, [8.0, -8.0, 8.0, -8.0, 8.0, -8.0, 8.0, -8.0])
    narrow, _ = batch_of([-1.0] * 8, SURPRISE)
    by_rollout = make_method("entropy_disc_batch", mu=1.0)
    state = by_rollout.begin_rollout(TokenBatch.cat([wide, narrow]), None, {})
    assert chosen(by_rollout.plan(narrow, None, state)) == []
    by_batch = replace(by_rollout, scope="minibatch")  # type: ignore[call-arg]
    assert chosen(by_batch.plan(narrow, None, state)) == [1, 2]


def test_clip_b_judges_tokens_by_the_policy_that_generated() -> None:
    batch, stats = batch_of([-1.0] * 8, SURPRISE)
    moved = replace(stats, logp=stats.logp - 1.0, entropy=stats.entropy * 3)
    plan = make_method("entropy_disc_batch", mu=1.0).plan(batch, moved)
    assert chosen(plan) == [1, 2]


# mean 0, variance 50/8, so sigma = 2.5
DISTANCE = [4.0, -4.0, 3.0, -3.0, 0.0, 0.0, 0.0, 0.0]


def test_clip_v_loss_and_gradient_by_hand() -> None:
    advantage = [-2.0, -1.0, 1.0, 1.0, -1.0, 3.0, 0.0, 0.5]
    batch, stats = vocab_of(advantage, DISTANCE)
    method = make_method("entropy_disc_vocab", mu=1.0, max_share=1.0)
    state = method.begin_rollout(batch, stats, method.initial_state())
    assert state == {"disc_std": 2.5, "disc_cut": 2.5}
    plan = method.plan(batch, stats, state)
    assert chosen(plan) == [0] and plan.scalars == {"selected": 1.0}
    loss, grad = loss_and_grad(batch, stats, plan)
    assert loss == pytest.approx(-3.5 / 7, abs=1e-15)
    kept = torch.tensor([[0.0, *advantage[1:]]], dtype=torch.float64)
    torch.testing.assert_close(grad, -kept / 7)


@pytest.mark.parametrize(
    ("mu", "max_share", "expected"),
    [
        (1.0, 0.25, [0, 2]),  # two of eight tokens
        (1.0, 0.24, [0]),  # floor(1.92) = 1, the larger
        (1.0, 1e-4, [0]),  # never less than one
        (1.1, 1.0, [0, 2]),  # D > 2.75
        (1.2, 1.0, [0]),  # 3 > 3 is false: the bound is strict
        (1.6, 1.0, []),  # 4 > 4 likewise
    ],
)
def test_clip_v_masks_the_largest_beyond_mu_deviations(
    mu: float, max_share: float, expected: list[int]
) -> None:
    batch, stats = vocab_of([-1.0] * 8, DISTANCE)
    method = make_method("entropy_disc_vocab", mu=mu, max_share=max_share)
    assert chosen(method.plan(batch, stats)) == expected


def test_clip_v_masks_what_ties_and_nothing_where_all_are_equal() -> None:
    batch, stats = vocab_of([-1.0] * 8, [4.0, 4.0, -4.0, -4.0, 0.0, 0.0, 0.0, 0.0])
    method = make_method("entropy_disc_vocab", mu=1.0, max_share=1e-4)
    assert chosen(method.plan(batch, stats)) == [0, 1]
    batch, stats = vocab_of([-1.0] * 8, [0.3] * 8)
    assert chosen(replace(method, mu=0.0).plan(batch, stats)) == []  # type: ignore[call-arg]


def test_clip_v_caps_over_the_rollout() -> None:
    batch, stats = vocab_of([-1.0] * 8, DISTANCE)
    other = replace(stats, m1=stats.m1 * 2)
    method = make_method("entropy_disc_vocab", mu=1.0, max_share=0.125)  # 2 of 16
    whole, known = TokenBatch.cat([batch, batch]), TokenStats.cat([stats, other])
    state = method.begin_rollout(whole, known, {})
    assert state["disc_cut"] == 6.0  # of 8, 6, 4 and 3 the two largest
    assert chosen(method.plan(batch, stats, state)) == []
    assert chosen(method.plan(batch, other, state)) == [0, 2]


@pytest.mark.parametrize(
    ("name", "params"),
    [("entropy_disc_batch", {"mu": 0.2}), ("entropy_disc_vocab", {"mu": 0.5, "max_share": 0.2})],
)
def test_the_gradient_differs_from_grpos_on_the_masked_tokens(name: str, params: dict) -> None:
    _, batch, stats = example(rows=40)
    plan = make_method(name, **params).plan(batch, stats)
    _, plain = loss_and_grad(batch, stats, make_method("grpo").plan(batch, stats))
    assert isinstance(plan.selected, Tensor) and plan.selected.sum() >= 3
    # A masked token that the ratio clip stopped anyway had no gradient to lose.
    assert torch.equal(differs_from("grpo", plan, batch, stats), plan.selected & (plain != 0))
    assert (batch.advantage[plan.selected] < 0).all()


def test_a_missing_old_entropy_is_named() -> None:
    batch, _ = batch_of([-1.0] * 8, SURPRISE)
    method = make_method("entropy_disc_batch")
    with pytest.raises(ValueError, match=r"reads batch\.old_entropy, which is None: pass the"):
        method.begin_rollout(replace(batch, old_entropy=None), None, {})
