"""EntroPIC: weights and the controller's trajectory by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from entropy_lab.interventions import make_method
from entropy_lab.types import TokenBatch, TokenStats
from token_examples import differs_from, example, hand_made, loss_and_grad


def tokens(entropy: float) -> tuple[TokenBatch, TokenStats]:
    """Six tokens: certain up, certain down, certain and neutral, at the bound, likely, rare."""
    pi = [0.99, 0.96, 0.97, 0.95, 0.94, 0.01]
    batch, stats = hand_made([2.0, -1.0, 0.0, 1.0, -3.0, 1.0], [math.log(p) for p in pi])
    return batch, replace(stats, entropy=torch.full_like(stats.logp, entropy))


@pytest.mark.parametrize(("mean", "share"), [("all", 1.0), ("high", 2.0)])
def test_loss_and_gradient_by_hand(mean: str, share: float) -> None:
    batch, stats = tokens(0.3)  # three of six tokens are above 0.95
    method = make_method("entropy_pi", mean=mean)
    plan = method.plan(batch, stats, {"integral": 5.0})
    alpha = 0.2 + 0.01 * 5.0
    assert plan.scalars == {"alpha": pytest.approx(alpha)}
    up, down = 1 + share * alpha, 1 - share * alpha
    loss, grad = loss_and_grad(batch, stats, plan)
    values = torch.tensor([[up * 2, -down, 0, 1, -3, 1]], dtype=torch.float64)
    assert loss == pytest.approx(-float(values.sum()) / 6, abs=1e-15)
    torch.testing.assert_close(grad, -values / 6)
    assert differs_from("grpo", plan, batch, stats).tolist() == [[True, True] + [False] * 4]
    assert plan.selected is not None
    assert plan.selected.tolist() == [[True, True] + [False] * 4]


def test_the_controller_by_hand() -> None:
    method = make_method("entropy_pi", target=0.5, k_p=0.5, k_i=0.25)
    state, alphas = method.initial_state(), []
    for entropy in (1.5, 1.0, 0.25, 0.5, 9.0, 0.0):
        batch, stats = tokens(entropy)
        state = method.begin_rollout(batch, stats, state)
        alphas.append((method.plan(batch, stats, state).scalars or {})["alpha"])
        state = method.end_step(batch, stats, state)
    # e:          1    0.5   -0.25   0       8.5    -0.5
    # sum before: 0    1      1.5    1.25    1.25    9.75
    expected = [0.5, 0.5, 0.25, 0.3125, 1.0, 1.0]  # the last two meet the limit
    assert alphas == pytest.approx(expected)
    assert state == {"integral": pytest.approx(9.25)}


def test_alpha_is_limited_below_as_above() -> None:
    batch, stats = tokens(0.0)
    plan = make_method("entropy_pi", target=0.5).plan(batch, stats, {"integral": -1e3})
    assert plan.scalars == {"alpha": -1.0}
    assert torch.as_tensor(plan.weight)[0, :3].tolist() == [0.0, 2.0, 1.0]


def test_the_gradient_differs_from_grpos_on_the_certain_tokens() -> None:
    _, batch, stats = example(rows=20)
    method = make_method("entropy_pi", probability=0.2, target=0.3)
    plan = method.plan(batch, stats)
    _, plain = loss_and_grad(batch, stats, make_method("grpo").plan(batch, stats))
    certain = batch.mask & (stats.logp.exp() > 0.2)
    assert certain.sum() > 8
    assert torch.equal(differs_from("grpo", plan, batch, stats), certain & (plain != 0))
