"""The methods of this package as policy losses of verl: loss_mode=entropy_lab_<method>.

verl's `ppo_loss` calls them, so its entropy bonus, its KL term and its averaging stay its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from entropy_lab.adapters.verl.settings import read_settings
from entropy_lab.adapters.verl.watch import Micro, current
from entropy_lab.errors import ConfigError
from entropy_lab.interventions import INTERVENTIONS, Method, make_method
from entropy_lab.loss import TokenShare, policy_loss
from entropy_lab.types import CLIPPED_HIGH, CLIPPED_LOW, DUAL_CLIPPED, TokenBatch, TokenStats

logger = logging.getLogger(__name__)

PREFIX = "entropy_lab_"
_GIVEN = frozenset({"logp", "entropy", "old_entropy"})
# A field of ours and what verl's config calls it.
_FROM_VERL = {
    "clip_low": "clip_ratio_low",
    "clip_high": "clip_ratio_high",
    "dual_clip": "clip_ratio_c",
}
_AVERAGED = {"seq_mean": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}


def register_methods() -> list[str]:
    """Register entropy_lab_<name> for every method; a method that verl cannot carry says why when
    it is used. Returns the names."""
    register = import_module("verl.trainer.ppo.core_algos").register_policy_loss
    for name in INTERVENTIONS:
        register(PREFIX + name)(partial(verl_policy_loss, name))
    return [PREFIX + name for name in INTERVENTIONS]


def why_not(method: Method) -> str:
    """Why verl's loss cannot carry a method, "" where it can."""
    own = type(method)
    if own.advantages is not Method.advantages:
        return "it changes the advantages, which verl computes before: see algorithm.adv_estimator"
    if method.needs - _GIVEN:
        return f"it reads {', '.join(sorted(method.needs - _GIVEN))}, which verl does not compute"
    if method.initial_state() or own.end_step is not Method.end_step:
        return "it keeps a memory from step to step, which a policy loss of verl has not"
    scope = getattr(method, "scope", "microbatch")
    if scope != "microbatch":
        return f"its scope is {scope!r}, and a policy loss of verl sees one micro-batch: set scope"
    if own.begin_rollout is not Method.begin_rollout:
        try:
            method.plan(*_one_token(), {})
        except ValueError:  # it asks its memory for what begin_rollout leaves there
            return "it reads the whole rollout, and a policy loss of verl sees one micro-batch"
    if method.normaliser == "selected_mean":
        return "it averages over the tokens it selects, of which verl's loss has no global count"
    return ""


def _one_token() -> tuple[TokenBatch, TokenStats]:
    one = torch.ones(1, 1)
    uid = torch.zeros(1, dtype=torch.int64)
    batch = TokenBatch(one.long(), one.bool(), one, -one, old_entropy=one, uid=uid)
    return batch, TokenStats(-one, one, one, one, one)


def method_for(name: str, given: Mapping[str, Any], config: Any) -> Method:
    """The method `name` with the fields `given`; its clip is verl's where they do not name it, and
    its scope the micro-batch.

    Raises ConfigError for wrong fields and for a method that verl cannot carry.
    """
    known = {f.name for f in fields(INTERVENTIONS[name])}
    verls: dict[str, Any] = {"scope": "microbatch"}
    for field, theirs in _FROM_VERL.items():
        value = _read(config, theirs)
        if theirs != "clip_ratio_c" and value is None:
            value = _read(config, "clip_ratio")
        if value is not None:
            verls[field] = float(value)
    verls = {field: value for field, value in verls.items() if field in known}
    try:
        method = make_method(name, **{**verls, **given})
    except ConfigError:  # as verl's own CISPO and GSPO, some methods know no dual clip
        method = None
    if method is None:
        verls.pop("dual_clip", None)
        method = make_method(name, **{**verls, **given})
    reason = why_not(method)
    if reason:
        raise ConfigError(f"verl cannot train with {PREFIX}{name}: {reason}")
    mode = _read(config, "loss_agg_mode")
    wanted = _AVERAGED.get(method.normaliser, mode)
    if mode != wanted:
        raise ConfigError(
            f"{name}: normaliser {method.normaliser!r} needs "
            f"actor_rollout_ref.actor.loss_agg_mode={wanted}, and it is {mode}"
        )
    return method


def _read(config: Any, name: str) -> Any:
    return config.get(name, None) if config is not None else None


_made: dict[str, Method] = {}


def _method(name: str, config: Any) -> Method:
    """Made once for each process and set of fields, and said in the log."""
    policy = _read(config, "policy_loss")
    section = _read(policy, "entropy_lab") if policy is not None else None
    given = read_settings(section).method or {}
    key = f"{name} {dict(given)} {[_read(config, c) for c in _FROM_VERL.values()]}"
    if key not in _made:
        _made[key] = method_for(name, given, config)
        logger.warning("entropy-lab: policy loss %s", _made[key])
    return _made[key]


def verl_policy_loss(
    name: str,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """verl's policy-loss signature for the method `name`; all tensors (B, T).

    The plan is executed by `policy_loss`; each token's share in the loss is that of verl's
    `agg_loss` under loss_agg_mode. Returns the loss and metrics (clip fractions, the mean of
    old_logp - logp, the plan's scalars). Raises ConfigError where the method cannot run in verl,
    or needs each token's entropy and `actor.calculate_entropy` is off.
    """
    method, micro = _method(name, config), current.get()
    rows = torch.arange(len(response_mask), device=response_mask.device)
    uid = micro.uid if micro is not None else None
    batch = TokenBatch(
        token_id=torch.zeros_like(response_mask, dtype=torch.int64),
        mask=response_mask.bool(),
        advantage=advantages,
        old_logp=old_log_prob,
        old_entropy=micro.field("entropy") if micro and "old_entropy" in method.needs else None,
        uid=rows if uid is None else uid,
        step=0 if micro is None else micro.step,
    )
    stats, lacking = _stats(log_prob, micro)
    if lacking and "entropy" in method.needs:
        raise ConfigError(_no_entropy(name))
    plan = method.plan(batch, stats.detach() if method.needs else None, {})
    if lacking and (isinstance(plan.entropy_coef, Tensor) or plan.entropy_coef != 0):
        raise ConfigError(_no_entropy(name))
    if rollout_is_weights is not None:
        plan = replace(plan, weight=plan.weight * rollout_is_weights)
    counts = dict(_read(config, "global_batch_info") or {})
    share = _share(batch.mask, loss_agg_mode, counts, log_prob)
    out = policy_loss(stats, batch, plan, TokenShare(policy=share, entropy=share))
    if micro is not None:
        micro.weight = torch.ones_like(old_log_prob) * plan.weight
        micro.flags = out.flags
    return out.loss, _metrics(out.flags, batch, log_prob, plan.scalars)


def _stats(log_prob: Tensor, micro: Micro | None) -> tuple[TokenStats, bool]:
    """What verl computed, the rest NaN; and whether it did not compute the entropy."""
    unknown = torch.full_like(log_prob.detach(), float("nan"))
    entropy = micro.entropy if micro is not None else None
    lacking = entropy is None
    return TokenStats(log_prob, unknown if lacking else entropy, *[unknown] * 3), lacking


def _no_entropy(name: str) -> str:
    return (
        f"{PREFIX}{name} reads each token's entropy, which verl did not compute: set "
        "actor_rollout_ref.actor.calculate_entropy=True"
    )


def _share(mask: Tensor, mode: str, counts: Mapping[str, Any], like: Tensor) -> Tensor:
    """d agg_loss / d loss of the token, (B, T): agg_loss is linear, so this is each token's
    coefficient whatever the mode."""
    agg_loss = import_module("verl.trainer.ppo.core_algos").agg_loss
    with torch.enable_grad():
        leaf = torch.zeros_like(like, requires_grad=True)
        total = agg_loss(loss_mat=leaf, loss_mask=mask, loss_agg_mode=mode, **counts)
        return torch.autograd.grad(total, leaf)[0].detach()


def _metrics(
    flags: Tensor, batch: TokenBatch, log_prob: Tensor, scalars: Mapping[str, float] | None
) -> dict[str, Any]:
    count = batch.mask.sum().clamp(min=1)

    def share(bits: int) -> float:
        return float(((flags & bits) > 0).sum() / count)

    gap = torch.where(batch.mask, batch.old_logp - log_prob.detach(), 0.0)
    metrics = {
        "actor/pg_clipfrac": share(CLIPPED_HIGH | CLIPPED_LOW),
        "actor/pg_clipfrac_lower": share(DUAL_CLIPPED),
        "actor/ppo_kl": float(gap.sum() / count),
    }
    return metrics | {f"entropy_lab/{k}": float(v) for k, v in (scalars or {}).items()}
