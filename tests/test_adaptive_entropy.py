"""The adaptive entropy bonus: loss by hand, and beta along entropies given by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from entropy_lab.interventions import make_method
from entropy_lab.loss import policy_loss
from token_examples import differs_from, example, hand_made


def rollout(entropy: float, measured: float = 9.0):
    """A batch whose mean -old_logp is `entropy`, with statistics of mean entropy `measured`."""
    batch, stats = hand_made([1.0, -1.0], [-1.0, -1.0], old=[-entropy - 0.0625, -entropy + 0.0625])
    spread = torch.tensor([[-0.02, 0.02]], dtype=torch.float64)
    return batch, replace(stats, entropy=measured + spread)


def test_loss_and_gradient_by_hand() -> None:
    batch, stats = hand_made([1.0, -0.5], [-0.7, -1.4])
    entropy = torch.tensor([[0.6, 0.2]], dtype=torch.float64, requires_grad=True)
    logp = stats.logp.clone().requires_grad_()
    method = make_method("adaptive_entropy", start=0.1, beta_max=0.2)
    plan = method.plan(batch, stats, {"beta": 0.1, "active": 1.0})
    loss = policy_loss(replace(stats, logp=logp, entropy=entropy), batch, plan).loss
    loss.backward()
    assert loss.item() == pytest.approx(-(1.0 - 0.5) / 2 - 0.1 * 0.4, abs=1e-15)
    assert logp.grad is not None and entropy.grad is not None
    assert logp.grad.tolist() == [[-0.5, 0.25]]
    torch.testing.assert_close(entropy.grad, torch.full_like(entropy, -0.05))


@pytest.mark.parametrize(("variant", "delta", "most"), [("skywork", 1e-4, 0.005), ("trl", 5e-3, 1)])
def test_each_variant_has_its_step_and_its_maximum(variant: str, delta: float, most: float) -> None:
    method = make_method("adaptive_entropy", variant=variant)
    state = method.initial_state()
    assert state == {"beta": 0.0, "active": 1.0}
    seen = []
    for _ in range(260):
        state = method.begin_rollout(*rollout(0.1), state)
        seen.append(state["beta"])
        state = method.end_step(*rollout(0.1, measured=0.1), state)
    steps = [b - a for a, b in zip(seen, seen[1:], strict=False) if b != a]
    assert steps[:20] == pytest.approx([delta] * 20)
    assert seen[-1] == pytest.approx(most) and max(seen) <= most


def test_skywork_moves_once_a_rollout_by_the_rollout_before() -> None:
    method = make_method("adaptive_entropy", delta=0.1, beta_max=0.25)
    state, applied = method.initial_state(), []
    for entropy in (0.1, 0.15, 0.3, 0.19, 0.1, 0.1):
        state = method.begin_rollout(*rollout(entropy), state)
        for _ in range(3):  # its optimizer steps, whatever their entropy, move nothing
            applied.append(method.plan(*rollout(entropy), state).entropy_coef)
            state = method.end_step(*rollout(entropy, measured=0.01), state)
    # by none, by 0.1, by 0.15, by 0.3 (down and at rest), by 0.19, by 0.1 (up to the maximum)
    expected = [0.0, 0.1, 0.2, 0.0, 0.2, 0.25]
    assert applied == pytest.approx([e for e in expected for _ in range(3)])
    assert state["beta"] == 0.25 and state["entropy"] == pytest.approx(0.1)


def test_skywork_counts_the_target_as_reached() -> None:
    method = make_method("adaptive_entropy", target=0.25, delta=0.1, start=0.2, beta_max=0.5)
    state = method.begin_rollout(*rollout(0.25), method.initial_state())
    assert state["entropy"] == 0.25
    state = method.begin_rollout(*rollout(0.1), state)
    assert (state["beta"], state["active"]) == (0.1, 0.0)


def test_trl_moves_at_each_step_and_counts_the_target_as_below() -> None:
    method = make_method("adaptive_entropy", variant="trl", delta=0.25, target=0.5, beta_max=0.5)
    state, applied = method.initial_state(), []
    for entropy in (0.5, 0.25, 0.125, 0.75, 1.0, 0.5):
        batch, stats = rollout(3.0)
        stats = replace(stats, entropy=torch.full_like(stats.entropy, entropy))
        state = method.begin_rollout(batch, stats, state)
        applied.append(method.plan(batch, stats, state).entropy_coef)
        state = method.end_step(batch, stats, state)
    assert applied == [0.0, 0.25, 0.5, 0.5, 0.0, 0.0]
    assert state == {"beta": 0.25, "active": 1.0, "entropy": 0.5}


def test_the_policy_gradient_stays_that_of_grpo() -> None:
    _, batch, stats = example()
    plan = make_method("adaptive_entropy", start=0.005).plan(batch, stats)
    assert plan.entropy_coef == 0.005
    assert not differs_from("grpo", plan, batch, stats).any()
