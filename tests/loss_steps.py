"""Plans and optimizer steps that the loss tests share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from entropy_lab.loss import TokenShare, policy_loss
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats

PLANS = {
    "grpo": TokenPlan(clip_low=0.2, clip_high=0.2, dual_clip=10.0),
    "clip_higher": TokenPlan(clip_low=0.2, clip_high=0.28, dual_clip=10.0),
    "dual_clip3": TokenPlan(clip_low=0.2, clip_high=0.2, dual_clip=3.0),
    "cispo": TokenPlan(clip_low=10.0, clip_high=0.2, both_sides=True),
    "gspo": TokenPlan(clip_low=3e-4, clip_high=4e-4, ratio_level="sequence"),
    "ce_gppo": TokenPlan(clip_low=0.2, clip_high=0.2, beyond_low=0.75, beyond_high=1.0),
    "kl": TokenPlan(abs_kl_coef=0.7, entropy_coef=0.01),
}


def stats_of(logp: Tensor, entropy: Tensor | None = None) -> TokenStats:
    zero = torch.zeros_like(logp)
    return TokenStats(logp, zero if entropy is None else entropy, zero, zero, zero)


def random_step(seed: int = 0) -> tuple[TokenStats, TokenBatch]:
    """Ratios from e^-4 to e^4, lengths 1 to 7 and one response without a token; float64."""
    gen = torch.Generator().manual_seed(seed)
    b, t = 6, 7
    length = torch.tensor([7, 3, 1, 5, 0, 6])
    mask = torch.arange(t) < length[:, None]
    old = -3 * torch.rand(b, t, generator=gen, dtype=torch.float64) - 0.1
    logp = old + torch.randn(b, t, generator=gen, dtype=torch.float64)
    advantage = torch.randn(b, t, generator=gen, dtype=torch.float64)
    entropy = torch.rand(b, t, generator=gen, dtype=torch.float64)
    batch = TokenBatch(torch.zeros(b, t).long(), mask, advantage, old)
    return stats_of(logp, entropy), batch


def gradients(
    stats: TokenStats, batch: TokenBatch, plan: TokenPlan, share: TokenShare | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    logp = stats.logp.detach().clone().requires_grad_()
    entropy = stats.entropy.detach().clone().requires_grad_()
    loss = policy_loss(replace(stats, logp=logp, entropy=entropy), batch, plan, share).loss
    grads = torch.autograd.grad(loss, (logp, entropy), allow_unused=True)
    filled = [torch.zeros_like(logp) if g is None else g for g in grads]
    return loss.detach(), filled[0], filled[1]
