"""REPO-R: rescaled advantages and the controller of zeta by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from entropy_lab.interventions import make_method
from token_examples import differs_from, example, hand_made, loss_and_grad


def clipped_loss(ratio: float, advantage: float) -> tuple[float, float]:
    """PPO's value and c of one token, clip 0.2, no dual clip: written out for the test."""
    inside = ratio < 1.2 if advantage > 0 else ratio > 0.8
    bound = 1.2 if advantage > 0 else 0.8
    return (ratio if inside else bound) * advantage, ratio * advantage * inside


@pytest.mark.parametrize("zeta", [0.05, -0.05])
def test_loss_and_gradient_by_hand(zeta: float) -> None:
    advantage = [2.0, -1.0, 1.0, -2.0, 0.0, -1.0]
    logp, old = [-0.5, -3.0, -4.0, -1.0, -2.0, -90.0], [-0.5, -2.5, -4.5, -1.1, -2.0, -89.9]
    batch, stats = hand_made(advantage, logp, old=old)
    plan = make_method("repo_r").plan(batch, stats, {"zeta": zeta})
    loss, grad = loss_and_grad(batch, stats, plan)
    value = slope = 0.0
    slopes = []
    for a, new, was in zip(advantage, logp, old, strict=True):
        seen = max(new, -20.0)  # 1 + 0.05 * -20 = 0: this token's push is gone
        scaled = max(0.0, a * (1 - zeta * seen)) if a > 0 else min(0.0, a * (1 + zeta * seen))
        one, slope = clipped_loss(2.718281828459045 ** (new - was), scaled)
        value += one
        slopes.append(-slope / 6)
    assert loss == pytest.approx(-value / 6, abs=1e-14)
    assert grad[0].tolist() == pytest.approx(slopes, abs=1e-14)


def test_the_advantage_never_changes_sign() -> None:
    batch, stats = hand_made([1.0, -1.0], [-15.0, -15.0])
    for zeta, weight in ((0.1, [2.5, 0.0]), (-0.1, [0.0, 2.5])):
        method = make_method("repo_r", zeta=zeta, zeta_max=1.0)
        assert torch.as_tensor(method.plan(batch, stats).weight)[0].tolist() == weight


def test_the_controller_by_hand() -> None:
    method = make_method("repo_r", zeta=0.25, zeta_min=0.125, zeta_max=1.0)
    state, seen = method.initial_state(), []
    assert state == {"zeta": 0.25}
    for entropy in (2.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0):
        batch, stats = hand_made([1.0, -1.0], [-1.0, -2.0])
        stats = replace(stats, entropy=torch.full_like(stats.entropy, entropy))
        state = method.begin_rollout(batch, stats, state)
        assert state["target"] == 2.0 and state["entropy"] == entropy
        assert method.end_step(batch, stats, state) == state
        seen.append(state["zeta"])
    start_and_up = [0.25, 0.5, 1.0, 1.0, 1.0]  # the last at the target: it stays
    down = [0.5, 0.25, 0.125, -0.125, -0.25, -0.5]
    up_again = [-0.25, -0.125, 0.125, 0.25]
    assert seen == start_and_up + down + up_again


def test_a_target_of_the_users_is_kept() -> None:
    batch, stats = hand_made([1.0], [-1.0])
    method = make_method("repo_r", target=0.7)
    assert method.begin_rollout(batch, stats, {"zeta": 1e-3})["target"] == 0.7


def test_the_gradient_differs_from_grpos_wherever_it_had_one() -> None:
    _, batch, stats = example(rows=20)
    batch = replace(batch, advantage=torch.where(batch.advantage.abs() < 0.3, 0.0, batch.advantage))
    plan = make_method("repo_r", zeta=0.01).plan(batch, stats)
    _, plain = loss_and_grad(batch, stats, make_method("grpo").plan(batch, stats))
    assert torch.equal(differs_from("grpo", plan, batch, stats), plain != 0)
    assert (torch.as_tensor(plan.weight)[batch.advantage == 0] == 1).all()
