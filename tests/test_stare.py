"""STARE: which tokens, which weights, and the gate, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from entropy_lab.interventions import make_method
from entropy_lab.types import TokenBatch, TokenStats
from token_examples import differs_from, example, hand_made, loss_and_grad

ADVANTAGE = [1.0, 1.0, 1.0, 1.0, -2.0, -2.0, -2.0, 0.0]
LOGP = [-0.1, -3.0, -0.2, -4.0, -0.3, -5.0, -0.4, -9.0]


def low_entropy(advantage: list[float], logp: list[float]) -> tuple[TokenBatch, TokenStats]:
    batch, stats = hand_made(advantage, logp)
    return batch, replace(stats, entropy=torch.full_like(stats.entropy, 0.25))


@pytest.mark.parametrize(
    ("variant", "weight"),
    [("O1", [1, 1.1, 1, 1.1, 1, 1, 1, 1]), ("C2", [1, 1.1, 1, 1.1, 1, 0.9, 0.9, 1])],
)
def test_loss_and_gradient_by_hand(variant: str, weight: list[float]) -> None:
    batch, stats = low_entropy(ADVANTAGE, LOGP)
    # Half of four, and half of three rounded up.
    method = make_method("stare", variant=variant, top=0.5)
    plan = method.plan(batch, stats, method.begin_rollout(batch, stats, {}))
    factor = torch.tensor([weight], dtype=torch.float64)
    assert torch.equal(torch.as_tensor(plan.weight), factor)
    loss, grad = loss_and_grad(batch, stats, plan)
    total = sum(w * a for w, a in zip(weight, ADVANTAGE, strict=True))
    assert loss == pytest.approx(-total / 8, abs=1e-15)
    torch.testing.assert_close(grad, -factor * batch.advantage / 8)
    assert plan.scalars == {"gate": 1.0, "selected": float((factor != 1).sum())}
    assert (plan.clip_low, plan.clip_high, plan.dual_clip) == (0.2, 0.28, 10.0)


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (10, 1), (11, 2), (25, 3), (30, 3)])
def test_a_tenth_is_rounded_up_and_whole_numbers_stay(tokens: int, expected: int) -> None:
    batch, stats = low_entropy([1.0] * tokens, [-0.1 * i for i in range(tokens)])
    plan = make_method("stare").plan(batch, stats)
    assert plan.selected is not None
    rare = sorted(range(tokens))[-expected:]
    assert plan.selected[0].nonzero().flatten().tolist() == rare


def test_the_gate_opens_below_the_target_only_and_is_the_rollouts() -> None:
    batch, stats = low_entropy(ADVANTAGE, LOGP)
    method = make_method("stare", gate=0.25)
    state = method.begin_rollout(batch, stats, method.initial_state())
    assert state == {"entropy": 0.25}
    closed = method.plan(batch, stats, state)
    assert closed.scalars == {"gate": 0.0, "selected": 0.0}
    assert not differs_from("clip_higher", closed, batch, stats).any()
    # The present entropy is above the gate, the rollout's is not.
    late = replace(stats, entropy=stats.entropy + 5)
    assert (method.plan(batch, late, {"entropy": 0.2499}).scalars or {})["gate"] == 1.0


def test_the_gradient_differs_from_clip_highers_on_the_chosen_tokens() -> None:
    _, batch, stats = example(rows=20)
    plan = make_method("stare", variant="C2", gate=9.0).plan(batch, stats)
    _, plain = loss_and_grad(batch, stats, make_method("clip_higher").plan(batch, stats))
    assert plan.selected is not None and plan.selected.sum() > 8
    changed = differs_from("clip_higher", plan, batch, stats)
    assert torch.equal(changed, plan.selected & (plain != 0))
