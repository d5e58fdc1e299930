"""policy_loss against the losses and gradients of published implementations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from entropy_lab.loss import policy_loss
from entropy_lab.types import CLIPPED_HIGH, CLIPPED_LOW, TokenBatch, TokenPlan, TokenStats
from golden import load_golden
from loss_steps import PLANS, gradients, stats_of


def golden_step() -> tuple[dict[str, Tensor], TokenStats, TokenBatch]:
    golden = {k: torch.from_numpy(v) for k, v in load_golden().items()}
    batch = TokenBatch(
        golden["action"], golden["mask"].bool(), golden["advantage"], golden["logp_old"]
    )
    return golden, stats_of(golden["logp"], golden["entropy"]), batch


@pytest.mark.parametrize("name", ["grpo", "clip_higher", "dual_clip3", "cispo", "gspo"])
def test_golden_losses_and_gradients(name):
    golden, stats, batch = golden_step()
    plan = PLANS[name]
    if name == "cispo":
        plan = replace(plan, clip_low=0.2, clip_high=0.28)
    loss, grad, _ = gradients(stats, batch, plan)
    torch.testing.assert_close(loss, golden[f"{name}_loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(grad, golden[f"{name}_grad"], rtol=0, atol=1e-9)


def test_golden_kl_cov_is_an_absolute_kl_on_chosen_tokens():
    golden, stats, batch = golden_step()
    score = golden["score_cov"].masked_fill(~batch.mask, -math.inf).flatten()
    chosen = torch.zeros_like(score)
    chosen[score.topk(int(0.02 * int(batch.mask.sum()))).indices] = 1.0
    plan = TokenPlan(abs_kl_coef=chosen.view_as(batch.advantage))
    loss, grad, _ = gradients(stats, batch, plan)
    torch.testing.assert_close(loss, golden["kl_cov_loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(grad, golden["kl_cov_grad"], rtol=0, atol=1e-9)


def test_golden_clip_cov_is_a_mask_that_stays_in_the_denominator():
    golden, stats, batch = golden_step()
    plain = TokenPlan(clip_low=0.2, clip_high=0.2)
    clipped = policy_loss(stats, batch, plain).flags & (CLIPPED_HIGH | CLIPPED_LOW) > 0
    score = golden["score_cov"]
    plan = replace(plain, mask=~((score > 0.3) & (score < 2.0) & ~clipped))
    loss, grad, _ = gradients(stats, batch, plan)
    torch.testing.assert_close(loss, golden["clip_cov_all_loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(grad, golden["clip_cov_all_grad"], rtol=0, atol=1e-9)


def test_golden_steer_weight_multiplies_after_the_dual_clip():
    golden, stats, batch = golden_step()
    plan = replace(PLANS["clip_higher"], weight=golden["steer_weight_exp08"])
    loss, grad, _ = gradients(stats, batch, plan)
    torch.testing.assert_close(loss.float(), golden["steer_loss_exp08"], rtol=0, atol=1e-8)
    torch.testing.assert_close(grad.float(), golden["steer_grad_exp08"], rtol=0, atol=1e-8)
