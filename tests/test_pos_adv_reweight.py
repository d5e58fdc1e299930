"""Positive-advantage reweighting: loss and lambda by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from entropy_lab.interventions import make_method
from token_examples import differs_from, example, hand_made, loss_and_grad


def test_loss_and_gradient_by_hand() -> None:
    # Ratios 1, 1, 2 (A > 0: clipped at 1.2) and 1.
    batch, stats = hand_made([2.0, -1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, -1.0],
                             old=[-1.0, -1.0, -1.0 - 0.6931471805599453, -1.0])  # fmt: skip
    plan = make_method("pos_adv_reweight").plan(batch, stats, {"lambda": 0.25})
    loss, grad = loss_and_grad(batch, stats, plan)
    assert loss == pytest.approx(-(0.25 * 2 - 1 + 0.25 * 1.2) / 4, abs=1e-15)
    assert grad[0].tolist() == pytest.approx([-0.5 / 4, 1 / 4, 0.0, 0.0])


def test_lambda_by_hand() -> None:
    method = make_method("pos_adv_reweight", threshold=0.5, delta=0.25, start=0.5)
    state, weights = method.initial_state(), []
    for entropy in (0.25, 0.25, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0):
        batch, stats = hand_made([1.0, -1.0], [-1.0, -2.0])
        stats = replace(stats, entropy=torch.full_like(stats.entropy, entropy))
        state = method.begin_rollout(batch, stats, state)
        weights.append(float(torch.as_tensor(method.plan(batch, stats, state).weight)[0, 0]))
        state = method.end_step(batch, stats, state)
        assert state["entropy"] == entropy
    # Down to 0 below the threshold; at the threshold and above it up to 1.
    assert weights == [0.5, 0.25, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0]
    assert state["lambda"] == 1.0


def test_the_gradient_differs_from_grpos_where_the_advantage_is_positive() -> None:
    _, batch, stats = example(rows=20)
    plan = make_method("pos_adv_reweight", start=0.4).plan(batch, stats)
    _, plain = loss_and_grad(batch, stats, make_method("grpo").plan(batch, stats))
    positive = batch.mask & (batch.advantage > 0)
    assert torch.equal(differs_from("grpo", plan, batch, stats), positive & (plain != 0))
