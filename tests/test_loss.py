"""policy_loss against a hand-worked table, finite differences and invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from entropy_lab.loss import policy_loss, token_share
from entropy_lab.types import (
    CLIPPED_HIGH,
    CLIPPED_LOW,
    DUAL_CLIPPED,
    SELECTED,
    TokenBatch,
    TokenPlan,
    TokenStats,
)
from loss_steps import PLANS, gradients, random_step, stats_of

NORMALISERS = ("token_mean", "selected_mean", "seq_mean", "constant")

# One response of ten tokens, clip 0.2/0.5, dual clip 3, token mean: ratio, A, value, c*10, flag.
TABLE = [
    (1.0, 2.0, 2.0, 2.0, 0),
    (1.4, 2.0, 2.8, 2.8, 0),
    (1.6, 2.0, 3.0, 0.0, CLIPPED_HIGH),
    (0.5, 2.0, 1.0, 1.0, 0),
    (1.0, -2.0, -2.0, -2.0, 0),
    (0.7, -2.0, -1.6, 0.0, CLIPPED_LOW),
    (1.6, -2.0, -3.2, -3.2, 0),
    (2.9, -2.0, -5.8, -5.8, 0),
    (4.0, -2.0, -6.0, 0.0, DUAL_CLIPPED),
    (4.0, 0.0, 0.0, 0.0, 0),
]


def f64(row: list[float]) -> Tensor:
    return torch.tensor([row], dtype=torch.float64)


def table_step() -> tuple[TokenStats, TokenBatch]:
    ratio, advantage = (f64([row[i] for row in TABLE]) for i in (0, 1))
    old = torch.full_like(ratio, -1.0)
    batch = TokenBatch(torch.zeros(1, 10).long(), torch.ones(1, 10).bool(), advantage, old)
    return stats_of(old + ratio.log()), batch


def test_hand_worked_table():
    stats, batch = table_step()
    plan = TokenPlan(clip_low=0.2, clip_high=0.5, dual_clip=3.0)
    loss, grad, _ = gradients(stats, batch, plan)
    assert float(loss) == pytest.approx(-sum(row[2] for row in TABLE) / 10, abs=1e-12)
    want = f64([row[3] for row in TABLE])
    torch.testing.assert_close(-grad * 10, want, rtol=0, atol=1e-12)
    assert policy_loss(stats, batch, plan).flags.tolist() == [[row[4] for row in TABLE]]


def test_weight_and_mask_act_after_the_clips_and_kl_after_both():
    stats, batch = table_step()
    weight = torch.linspace(0.5, 1.4, 10, dtype=torch.float64)[None]
    keep = torch.arange(10)[None] % 3 != 0
    plan = TokenPlan(weight, keep, 0.2, 0.5, dual_clip=3.0, abs_kl_coef=0.25)
    _, grad, _ = gradients(stats, batch, plan)
    c = f64([row[3] for row in TABLE]) * weight * keep
    sign = f64([row[0] for row in TABLE]).log().sign()
    torch.testing.assert_close(-grad * 10, c - 0.25 * sign, rtol=0, atol=1e-12)


def test_beyond_the_clip_c_is_beta_bound_advantage():
    stats, batch = table_step()
    plan = replace(PLANS["ce_gppo"], clip_high=0.5, dual_clip=3.0)
    loss, grad, _ = gradients(stats, batch, plan)
    want = [row[3] for row in TABLE]
    want[2], want[5] = 1.0 * 1.5 * 2.0, 0.75 * 0.8 * -2.0
    torch.testing.assert_close(-grad * 10, f64(want), rtol=0, atol=1e-12)
    values = [row[2] for row in TABLE]
    values[5] = 0.75 * 0.8 * -2.0
    assert float(loss) == pytest.approx(-sum(values) / 10, abs=1e-12)
    flags = policy_loss(stats, batch, plan).flags[0].tolist()
    assert flags == [row[4] for row in TABLE]


def test_cispo_clips_whatever_the_sign_and_keeps_the_gradient():
    stats, batch = table_step()
    plan = TokenPlan(clip_low=0.2, clip_high=0.5, both_sides=True)
    _, grad, _ = gradients(stats, batch, plan)
    want = [min(max(row[0], 0.8), 1.5) * row[1] for row in TABLE]
    torch.testing.assert_close(-grad * 10, f64(want), rtol=0, atol=1e-12)
    high, low = CLIPPED_HIGH, CLIPPED_LOW
    assert policy_loss(stats, batch, plan).flags.tolist() == [
        [0, 0, high, low, 0, low, high, high, high, high]
    ]


# The others hold stop-gradients: their gradient is not that of the value, by construction.
@pytest.mark.parametrize("name", ["grpo", "clip_higher", "dual_clip3", "kl"])
def test_gradient_is_the_finite_difference(name):
    stats, batch = random_step()
    plan = PLANS[name]
    _, grad, grad_entropy = gradients(stats, batch, plan)
    for field, analytic in (("logp", grad), ("entropy", grad_entropy)):
        for index in zip(*torch.where(batch.mask), strict=True):
            ends = []
            for step in (1e-6, -1e-6):
                moved = getattr(stats, field).clone()
                moved[index] += step
                ends.append(policy_loss(replace(stats, **{field: moved}), batch, plan).loss)
            assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(
                float(analytic[index]), abs=1e-8
            )


def test_sequence_ratio_is_the_geometric_mean():
    stats, batch = random_step()
    plan = TokenPlan(ratio_level="sequence")
    _, grad, _ = gradients(stats, batch, plan)
    d = (stats.logp - batch.old_logp) * batch.mask
    length = batch.mask.sum(1, keepdim=True).clamp(min=1)
    ratio = (d.sum(1, keepdim=True) / length).exp()
    want = ratio * batch.advantage * batch.mask / batch.mask.sum()
    torch.testing.assert_close(-grad, want, rtol=0, atol=1e-12)


def some_plan(plan: TokenPlan, normaliser: str, batch: TokenBatch) -> TokenPlan:
    gen = torch.Generator().manual_seed(5)
    shape = batch.mask.shape
    return replace(
        plan,
        weight=torch.rand(shape, generator=gen, dtype=torch.float64),
        mask=torch.rand(shape, generator=gen) > 0.3,
        entropy_coef=torch.rand(shape, generator=gen, dtype=torch.float64),
        normaliser=normaliser,
        constant_length=9,
    )


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("name", PLANS)
def test_gradient_of_a_step_does_not_depend_on_the_micro_batches(name, normaliser):
    stats, batch = random_step()
    plan = some_plan(PLANS[name], normaliser, batch)
    whole = gradients(stats, batch, plan)
    share = token_share(batch, plan)
    for rows in ([[4], [2, 0], [5, 1, 3]], [[0, 1, 2], [3, 4, 5]]):
        index = [torch.tensor(r) for r in rows]
        parts = [
            gradients(stats.rows(i), batch.rows(i), plan.rows(i), share.rows(i)) for i in index
        ]
        total = torch.stack([p[0] for p in parts]).sum()
        torch.testing.assert_close(total, whole[0], rtol=0, atol=1e-12)
        for k in (1, 2):
            joined = torch.cat([p[k] for p in parts])[torch.cat(index).argsort()]
            torch.testing.assert_close(joined, whole[k], rtol=0, atol=1e-12)


def test_shares_by_hand():
    mask = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    zero = torch.zeros(3, 3).double()
    batch = TokenBatch(zero.long(), mask, zero, zero)
    keep = torch.tensor([[True, False, True], [True, True, True], [True] * 3])
    rows = {
        "token_mean": [[1 / 3, 1 / 3, 0], [1 / 3, 0, 0], [0] * 3],
        "selected_mean": [[1 / 2, 0, 0], [1 / 2, 0, 0], [0] * 3],
        "seq_mean": [[1 / 4, 1 / 4, 0], [1 / 2, 0, 0], [0] * 3],
        "constant": [[1 / 30, 1 / 30, 0], [1 / 30, 0, 0], [0] * 3],
    }
    for normaliser, want in rows.items():
        plan = TokenPlan(mask=keep, normaliser=normaliser, constant_length=10)
        share = token_share(batch, plan)
        torch.testing.assert_close(share.policy, torch.tensor(want).double())
        other = rows["token_mean"] if normaliser == "selected_mean" else want
        torch.testing.assert_close(share.entropy, torch.tensor(other).double())


def test_entropy_term_is_the_mean_over_all_valid_tokens():
    stats, batch = random_step()
    plan = TokenPlan(mask=torch.zeros_like(batch.mask), entropy_coef=0.3)
    for normaliser in ("token_mean", "selected_mean"):
        loss = policy_loss(stats, batch, replace(plan, normaliser=normaliser)).loss
        assert float(loss) == pytest.approx(-0.3 * float(stats.entropy[batch.mask].mean()))


@pytest.mark.parametrize("name", PLANS)
def test_padding_may_hold_anything(name):
    stats, batch = random_step()
    plan = some_plan(PLANS[name], "token_mean", batch)
    want = gradients(stats, batch, plan)
    hole = ~batch.mask
    for junk in (math.nan, math.inf, -math.inf, 0.0):
        dirty = stats.map(lambda x, v=junk: x.masked_fill(hole, v))
        rows = replace(
            batch,
            old_logp=batch.old_logp.masked_fill(hole, junk),
            advantage=batch.advantage.masked_fill(hole, junk),
        )
        weight = torch.as_tensor(plan.weight).masked_fill(hole, junk)
        coef = torch.as_tensor(plan.entropy_coef).masked_fill(hole, junk)
        got = gradients(dirty, rows, replace(plan, weight=weight, entropy_coef=coef))
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
        assert policy_loss(dirty, rows, plan).flags[hole].max() == 0


def test_selected_tokens_are_flagged_inside_the_mask_only():
    stats, batch = random_step()
    selected = torch.ones_like(batch.mask)
    flags = policy_loss(stats, batch, TokenPlan(selected=selected)).flags
    assert flags.dtype == torch.uint8
    assert torch.equal(flags, batch.mask.to(torch.uint8) * SELECTED)


def test_huge_ratios_stay_finite_and_pass_no_gradient():
    batch = TokenBatch(
        torch.zeros(1, 2).long(), torch.ones(1, 2).bool(), torch.ones(1, 2), torch.zeros(1, 2)
    )
    loss, grad, _ = gradients(stats_of(torch.tensor([[500.0, -500.0]])), batch, TokenPlan())
    assert float(loss) == pytest.approx(-(math.exp(20) + math.exp(-20)) / 2)
    assert grad.abs().max() == 0


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"weight": torch.ones(6, 1)}, ValueError, r"weight has shape \(6, 1\).*\(6, 7\)"),
        ({"weight": torch.ones(6, 7, requires_grad=True)}, ValueError, "weight requires grad"),
        ({"normaliser": "mean"}, ValueError, "normaliser is 'mean': use one of token_mean"),
        ({"ratio_level": "word"}, ValueError, "ratio_level is 'word': use one of token, seq"),
        ({"normaliser": "constant"}, ValueError, "constant_length None: set it to"),
        ({"mask": torch.ones(6, 7)}, TypeError, r"mask must be bool, got torch.float32"),
    ],
)
def test_plan_errors(change, error, text):
    stats, batch = random_step()
    with pytest.raises(error, match=text):
        policy_loss(stats, batch, TokenPlan(**change))


def test_batch_errors():
    stats, batch = random_step()
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    with pytest.raises(ValueError, match="mask of all 6 responses is empty"):
        token_share(empty, TokenPlan())
    with pytest.raises(ValueError, match=r"stats.logp has shape \(2, 7\) but the batch is"):
        policy_loss(stats.rows(slice(0, 2)), batch, TokenPlan())
    share = token_share(batch, TokenPlan()).rows(slice(0, 2))
    with pytest.raises(ValueError, match=r"share has shape \(2, 7\)"):
        policy_loss(stats, batch, TokenPlan(), share)
    share = token_share(batch, TokenPlan()).rows(slice(4, 5))
    one = policy_loss(stats.rows(slice(4, 5)), batch.rows(slice(4, 5)), TokenPlan(), share)
    assert float(one.loss) == 0.0  # a micro-batch without tokens adds nothing
