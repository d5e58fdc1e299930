"""Entrocraft: the band along a run, and who is rejected, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from entropy_lab.interventions import make_method
from entropy_lab.types import TokenBatch, TokenStats
from token_examples import differs_from, example, loss_and_grad


def rollout(entropy: float, step: int = 0) -> tuple[TokenBatch, TokenStats]:
    """Three responses, A = 1, -2 and 0, with 3, 2 and 1 tokens."""
    mask = torch.arange(3) < torch.tensor([[3], [2], [1]])
    logp = torch.full((3, 3), -1.0, dtype=torch.float64)
    advantage = torch.tensor([[1.0], [-2.0], [0.0]], dtype=torch.float64).expand(3, 3)
    batch = TokenBatch(torch.zeros(3, 3).long(), mask, advantage, logp, step=step)
    return batch, TokenStats(logp, torch.full_like(logp, entropy), logp, logp, logp)


@pytest.mark.parametrize(
    ("entropy", "direction", "rejected", "loss", "c"),
    [
        # Too low: only what raises entropy, A <= 0, stays: the loss is 2 * 2 / 3 tokens.
        (0.3, -1.0, 0, 4 / 3, [[0, 0, 0], [-2 / 3, -2 / 3, 0], [0, 0, 0]]),
        # Too high: A >= 0 stays, 4 tokens.
        (0.9, 1.0, 1, -3 / 4, [[1 / 4] * 3, [0, 0, 0], [0, 0, 0]]),
        (0.65, 0.0, None, (4 - 3) / 6, [[1 / 6] * 3, [-2 / 6, -2 / 6, 0], [0, 0, 0]]),
    ],
)
def test_loss_and_gradient_by_hand(entropy, direction, rejected, loss, c) -> None:
    batch, stats = rollout(entropy)
    method = make_method("entrocraft", total_steps=10)
    state = method.begin_rollout(batch, stats, method.initial_state())
    assert state["direction"] == direction and state["entropy"] == pytest.approx(entropy)
    plan = method.plan(batch, stats, state)
    assert plan.scalars == {"rejected": float(rejected is not None)}
    found, grad = loss_and_grad(batch, stats, plan)
    assert found == pytest.approx(loss, abs=1e-15)
    torch.testing.assert_close(grad, -torch.tensor(c, dtype=torch.float64))
    lost = torch.zeros_like(batch.mask)
    if rejected is not None:
        lost[rejected] = batch.mask[rejected]
    assert torch.equal(differs_from("grpo", plan, batch, stats), lost)
    assert plan.selected is not None and torch.equal(plan.selected, lost)


@pytest.mark.parametrize(
    ("step", "low", "high"), [(0, 0.6, 0.7), (50, 0.5, 0.6), (100, 0.4, 0.5), (250, 0.4, 0.5)]
)
def test_the_band_falls_along_the_run_and_then_stays(step: int, low: float, high: float) -> None:
    method = make_method("entrocraft", total_steps=100)
    around = [(low - 0.01, -1), (low + 0.01, 0), (high - 0.01, 0), (high + 0.01, 1)]
    for entropy, direction in around:
        state = method.begin_rollout(*rollout(entropy, step), {})
        assert state["direction"] == direction
        assert (state["low"], state["high"]) == (pytest.approx(low), pytest.approx(high))


def test_the_direction_is_the_rollouts_for_all_of_its_steps() -> None:
    method = make_method("entrocraft", total_steps=10)
    state = method.begin_rollout(*rollout(0.3), {})
    later = method.plan(*rollout(5.0, step=9), state)
    assert isinstance(later.mask, torch.Tensor)
    assert later.mask.any(1).tolist() == [False, True, True]
    assert method.end_step(*rollout(5.0), state) == state


def test_a_step_that_rejects_everything_has_no_policy_loss() -> None:
    batch, stats = rollout(0.3)
    up = replace(batch, advantage=torch.ones_like(batch.advantage))
    loss, grad = loss_and_grad(up, stats, make_method("entrocraft", total_steps=1).plan(up, stats))
    assert loss == 0.0 and not grad.any()


def test_the_gradient_differs_from_grpos_on_rejected_responses() -> None:
    _, batch, stats = example(rows=20)
    plan = make_method("entrocraft", total_steps=100).plan(batch, stats)  # H is about 1.6
    _, plain = loss_and_grad(batch, stats, make_method("grpo").plan(batch, stats))
    negative = batch.mask & (batch.advantage < 0)
    assert torch.equal(differs_from("grpo", plan, batch, stats), negative & (plain != 0))
