"""One loss that executes any TokenPlan, and each token's share of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from entropy_lab.types import (
    CLIPPED_HIGH,
    CLIPPED_LOW,
    DUAL_CLIPPED,
    SELECTED,
    Normaliser,
    RatioLevel,
    TokenBatch,
    TokenPlan,
    TokenStats,
    _Rows,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8

CorrectionLevel = Literal["token", "sequence"]

# |logp - old_logp| beyond which the ratio stays put and passes no gradient; as in verl.
_MAX_LOG_RATIO = 20.0
_MAX_LOG_SEQUENCE_RATIO = 10.0


@dataclass(frozen=True)
class TokenShare(_Rows):
    """Each token's coefficient in the loss of the whole optimizer step, (B, T), 0 outside mask.

    policy: of its policy loss and absolute KL; entropy: of its entropy, in the entropy bonus.
    They differ under `selected_mean`, whose bonus stays a mean over all valid tokens.
    """

    policy: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]


@dataclass(frozen=True)
class LossOutput:
    """loss: scalar to call backward on; flags (B, T) uint8, bits of types.py, 0 outside mask."""

    loss: Float[Tensor, ""]
    flags: UInt8[Tensor, "B T"]


def token_share(batch: TokenBatch, plan: TokenPlan) -> TokenShare:
    """1 / denominator of every token under plan.normaliser, over the whole `batch`.

    token_mean 1/N; selected_mean 1/N over tokens with plan.mask, 0 for the others; seq_mean
    1/(responses with a token * own length); constant 1/(B * constant_length). Compute it on all
    responses of the optimizer step and slice it with `.rows()`: the losses of the micro-batches
    then add up to the loss of the step. Returns TokenShare of (B, T).
    Raises ValueError on an empty mask, an unknown normaliser or a missing constant_length.
    """
    _check_plan(plan, batch)
    mask = batch.mask
    count = int(mask.sum())
    if count == 0:
        raise ValueError(
            f"the mask of all {mask.shape[0]} responses is empty: there is no token to average "
            "over; skip this optimizer step"
        )
    dtype = torch.promote_types(batch.advantage.dtype, batch.old_logp.dtype)
    valid = mask.to(dtype)
    if plan.normaliser == "seq_mean":
        length = valid.sum(1, keepdim=True)  # (B, 1)
        share = valid / length.clamp(min=1) / (length > 0).sum()
    elif plan.normaliser == "constant":
        if not plan.constant_length or plan.constant_length < 1:
            raise ValueError(
                f"normaliser 'constant' has constant_length {plan.constant_length}: set it to "
                "the longest response allowed, in tokens"
            )
        share = valid / (mask.shape[0] * plan.constant_length)
    else:
        share = valid / count
    if plan.normaliser != "selected_mean":
        return TokenShare(policy=share, entropy=share)
    chosen = (mask & plan.mask).to(dtype)
    # A step from which the method drops every token has no policy loss rather than 0/0.
    return TokenShare(policy=chosen / chosen.sum().clamp(min=1), entropy=share)


def sampler_weight(
    old_logp: Float[Tensor, "B T"],
    rollout_logp: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    level: CorrectionLevel,
    cap: float,
) -> Float[Tensor, "B T"]:
    """w = min(exp(old_logp - rollout_logp), cap), truncated importance sampling; 1 outside mask.

    old_logp: the trainer's log-probabilities of the tokens at the weights that sampled them,
    rollout_logp: the sampler's own, both (B, T) in nats; mask (B, T) bool, all sampled tokens.
    level "token": each its own ratio (Yao et al. 2025, "Your Efficient RL Framework Secretly
    Brings You Off-Policy RL Training"); "sequence": the product over the response, for all of its
    tokens (verl, rollout_is). The logarithm is kept within +-20 before the exponential, as there.
    Never below 0, never above cap; detached.
    """
    d = torch.where(mask, (old_logp - rollout_logp).detach(), 0.0)
    if level == "sequence":
        d = d.sum(1, keepdim=True).expand_as(d)
    weight = d.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp().clamp(max=cap)
    return torch.where(mask, weight, 1.0)


def policy_loss(
    stats: TokenStats, batch: TokenBatch, plan: TokenPlan, share: TokenShare | None = None
) -> LossOutput:
    """The loss of a plan: L = sum share (policy loss + abs KL) - sum share entropy_coef H.

    d = logp - old_logp within +-20, r = exp(d); value = min(r A, clip(r) A) with beta beyond the
    bound (CE-GPPO, arXiv 2509.20712), or sg(clip(r)) A logp (`both_sides`, CISPO, 2506.13585);
    dual clip where A < 0; times weight; dropped where plan.mask is false; then
    + abs_kl_coef |d|. ratio_level "sequence" replaces d by its mean over the response, with the
    gradient of the token's own logp (GSPO, 2507.18071). Tokens outside batch.mask may hold
    anything, NaN included.
    stats, batch and the plan's tensors (B, T); share from `token_share` over the whole optimizer
    step, or None where `batch` is the whole step. Nothing flows into the batch.
    Raises ValueError on shapes that do not fit, a plan tensor that requires gradients, and
    whatever `token_share` raises.
    """
    _check_plan(plan, batch)
    _check_shape("stats.logp", stats.logp, batch)
    share = token_share(batch, plan) if share is None else share
    _check_shape("share", share.policy, batch)
    mask = batch.mask
    zero = stats.logp.new_zeros(())
    # Selecting before any arithmetic keeps NaN of the padding out of values and gradients.
    logp = torch.where(mask, stats.logp, zero)
    old_logp = torch.where(mask, batch.old_logp.detach().to(logp.dtype), zero)
    advantage = torch.where(mask, batch.advantage.detach().to(logp.dtype), zero)
    d = (logp - old_logp).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)

    value, flags = _value(logp, d, advantage, mask, plan)
    value, flags = _dual_clip(value, advantage, flags, plan)
    loss = torch.where(mask & plan.mask, -value * plan.weight, zero)
    if _active(plan.abs_kl_coef):
        loss = loss + torch.where(mask, plan.abs_kl_coef * d.abs(), zero)
    total = (share.policy * loss).sum()
    if _active(plan.entropy_coef):
        entropy = torch.where(mask, stats.entropy, zero)
        bonus = torch.where(mask, plan.entropy_coef * entropy, zero)
        total = total - (share.entropy * bonus).sum()
    if plan.selected is not None:
        flags = flags | plan.selected.to(torch.uint8) * SELECTED
    return LossOutput(loss=total, flags=flags.masked_fill(~mask, 0))


def _value(
    logp: Tensor, d: Tensor, advantage: Tensor, mask: Tensor, plan: TokenPlan
) -> tuple[Tensor, Tensor]:
    """What the loss maximises per token, clipped, and the clip flags; both (B, T)."""
    if plan.ratio_level == "sequence":
        length = mask.sum(1, keepdim=True).clamp(min=1)
        mean = (d.detach() * mask).sum(1, keepdim=True) / length  # (B, 1)
        d = (logp - logp.detach() + mean).clamp(max=_MAX_LOG_SEQUENCE_RATIO)
    ratio = d.exp()
    fixed = ratio.detach()
    low, high = 1 - plan.clip_low, 1 + plan.clip_high
    below, above = fixed < low, fixed > high
    if not plan.both_sides:
        below, above = below & (advantage < 0), above & (advantage > 0)
    flags = below.to(torch.uint8) * CLIPPED_LOW + above.to(torch.uint8) * CLIPPED_HIGH
    # 0 where no bound applies, so that an infinite bound never meets a zero advantage.
    bound = _pick(below, low, above, high, fixed)
    beyond = below | above
    if plan.both_sides:
        return torch.where(beyond, bound, fixed) * advantage * logp, flags
    beta = _pick(below, plan.beyond_low, above, plan.beyond_high, fixed)
    # Value beta * bound * A with the gradient of r/sg(r), which is that of d.
    pushed = beta * (d - d.detach()).exp()
    held = bound * advantage * torch.where(beta > 0, pushed, torch.ones_like(fixed))
    return torch.where(beyond, held, ratio * advantage), flags


def _pick(
    below: Tensor, low: Tensor | float, above: Tensor, high: Tensor | float, like: Tensor
) -> Tensor:
    """`low` where below, `high` where above, else 0; (B, T) in the dtype of `like`."""
    values = [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (low, high)]
    return torch.where(below, values[0], torch.where(above, values[1], like.new_zeros(())))


def _dual_clip(
    value: Tensor, advantage: Tensor, flags: Tensor, plan: TokenPlan
) -> tuple[Tensor, Tensor]:
    if isinstance(plan.dual_clip, float) and plan.dual_clip == float("inf"):
        return value, flags
    floor = plan.dual_clip * advantage
    binds = (advantage < 0) & (value.detach() < floor)
    return torch.where(binds, floor, value), flags + binds.to(torch.uint8) * DUAL_CLIPPED


def _active(coefficient: Tensor | float) -> bool:
    return isinstance(coefficient, Tensor) or coefficient != 0.0


def _check_plan(plan: TokenPlan, batch: TokenBatch) -> None:
    for name, options in (("normaliser", Normaliser), ("ratio_level", RatioLevel)):
        if getattr(plan, name) not in get_args(options):
            raise ValueError(
                f"TokenPlan.{name} is {getattr(plan, name)!r}: use one of "
                + ", ".join(get_args(options))
            )
    for field in fields(plan):
        value = getattr(plan, field.name)
        if not isinstance(value, Tensor):
            continue
        if value.ndim:
            _check_shape(f"TokenPlan.{field.name}", value, batch)
        if value.requires_grad:
            raise ValueError(
                f"TokenPlan.{field.name} requires gradients: a plan is fixed before the loss; "
                "compute it from detached statistics"
            )
    for name in ("mask", "selected"):
        value = getattr(plan, name)
        if isinstance(value, Tensor) and value.dtype != torch.bool:
            raise TypeError(f"TokenPlan.{name} must be bool, got {value.dtype}: pass .bool()")


def _check_shape(name: str, value: Tensor, batch: TokenBatch) -> None:
    if value.shape != batch.mask.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} but the batch is "
            f"{tuple(batch.mask.shape)}: pass (B, T), with the same rows of both"
        )
