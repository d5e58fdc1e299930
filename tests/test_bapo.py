"""BAPO: the search for the clip interval, and the loss in it, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from entropy_lab.interventions import make_method
from token_examples import differs_from, example, hand_made, loss_and_grad


def tokens(*pairs: tuple[float, float]):
    """Tokens with these (ratio, advantage)."""
    ratio, advantage = zip(*pairs, strict=True)
    old = [-1.0 - math.log(r) for r in ratio]
    return hand_made(list(advantage), [-1.0] * len(pairs), old=old)


@pytest.mark.parametrize(
    ("pairs", "params", "low", "high", "balance"),
    [
        # Balanced from the start: 1.2 against 1.
        ([(3.0, 1.0), (1.0, -1.0)], {}, 0.6, 1.2, 1.2),
        # min(3, high) >= 1.58 from high = 1.6 on; low has gone all the way before.
        ([(3.0, 1.0), (1.0, -1.58)], {}, 0.8, 1.6, 1.6 / 1.58),
        ([(3.0, 1.0), (1.0, -1.58)], {"first": "high"}, 0.6, 1.6, 1.6 / 1.58),
        # Never balanced: both ends.
        ([(3.0, 1.0), (1.0, -9.0)], {}, 0.8, 2.0, 2.0 / 9.0),
        ([(3.0, 1.0), (1.0, -9.0)], {"first": "high"}, 0.8, 2.0, 2.0 / 9.0),
        # A ratio below low counts with low: 1.2 / (0.6 * 2) is exactly enough.
        ([(3.0, 1.0), (0.1, -1.0), (0.1, -1.0)], {"balance": 0.999}, 0.6, 1.2, 1.0),
        ([(3.0, 1.0), (0.1, -2.02)], {"first": "high"}, 0.6, 1.25, 1.25 / 1.212),
        # Steps that do not divide the range end at its end.
        ([(9.0, 1.0), (1.0, -9.0)], {"high_step": 0.3, "low_step": 0.15}, 0.8, 2.0, 2.0 / 9.0),
        ([(2.0, 1.0), (1.0, 1.0)], {}, 0.6, 1.2, math.inf),
    ],
)
def test_the_interval_by_hand(pairs, params, low: float, high: float, balance: float) -> None:
    batch, stats = tokens(*pairs)
    plan = make_method("bapo", **params).plan(batch, stats)
    assert plan.scalars == pytest.approx({"low": low, "high": high, "balance": balance})
    assert (plan.clip_low, plan.clip_high) == pytest.approx((1 - low, high - 1))


def test_the_paper_raises_high_to_its_end_and_then_low() -> None:
    method = make_method(
        "bapo", first="high", high_max=3.0, low_max=0.9, low_step=0.02, balance=2 / 3
    )
    pairs = list(method._pairs())  # type: ignore[attr-defined]
    assert pairs[0] == (0.6, 1.2) and pairs[1] == pytest.approx((0.6, 1.25))
    assert pairs[36] == (0.6, 3.0) and pairs[37] == pytest.approx((0.62, 3.0))
    assert pairs[-1] == (0.9, 3.0) and len(pairs) == 1 + 36 + 15


def test_loss_and_gradient_by_hand() -> None:
    # low 0.8, high 1.6 as above, with tokens of A = 0 and small A that do not disturb.
    batch, stats = tokens((3.0, 1.0), (1.0, -1.58), (0.7, -1e-9), (4.0, -1e-9), (1.5, 1e-9), (1, 0))
    plan = make_method("bapo").plan(batch, stats)
    loss, grad = loss_and_grad(batch, stats, plan)
    # Clipped up; inside; clipped down at 0.8; dual clip at 3; inside; nothing.
    values = [1.6, -1.58, -0.8e-9, -3e-9, 1.5e-9, 0.0]
    assert loss == pytest.approx(-sum(values) / 6, abs=1e-15)
    c = [0.0, -1.58, 0.0, 0.0, 1.5e-9, 0.0]
    assert (-6 * grad[0]).tolist() == pytest.approx(c, abs=1e-15)


def test_the_gradient_differs_from_grpos_between_the_two_intervals() -> None:
    _, batch, stats = example(rows=40)
    plan = make_method("bapo", dual_clip=10.0, high_start=1.5).plan(batch, stats)
    low, high = 1 - float(plan.clip_low), 1 + float(plan.clip_high)
    ratio = (stats.logp - batch.old_logp).exp()
    between = batch.mask & torch.where(
        batch.advantage > 0, (ratio > 1.2) & (ratio <= high), (ratio < 0.8) & (ratio >= low)
    )
    assert between.sum() > 8
    assert torch.equal(differs_from("grpo", plan, batch, stats), between)
