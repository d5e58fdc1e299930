"""Which plans TRL's own loss can carry out, and why it cannot carry the others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from entropy_lab.adapters.trl.micro import CLIPPED_LOSSES
from entropy_lab.errors import ConfigError
from entropy_lab.interventions import Method, make_method, plan_step
from entropy_lab.stats import token_stats
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats

# loss_type: the averages over tokens under which a plan means the same.
_AVERAGES = {
    "dapo": ("token_mean",),
    "bnpo": ("token_mean",),
    "grpo": ("token_mean", "seq_mean"),
    "dr_grpo": ("token_mean", "constant"),
}


def resolve(method: str | dict[str, Any] | Method) -> Method:
    """A name, {"name": ..., settings} or the method itself; ConfigError for an unknown one."""
    if isinstance(method, str):
        return make_method(method)
    if isinstance(method, dict):
        settings = dict(method)
        if "name" not in settings:
            raise ConfigError(f'method = {method!r} has no "name": give {{"name": "steer", ...}}')
        return make_method(settings.pop("name"), **settings)
    return method


def why_not(plan: TokenPlan, trainer: Any) -> str:
    """Why TRL's loss cannot carry out `plan`; "" where it can."""
    clipped = not (_is(plan.clip_low, math.inf) and _is(plan.clip_high, math.inf))
    level = trainer.importance_sampling_level
    averages = _AVERAGES.get(trainer.loss_type, ("token_mean",))
    length = getattr(trainer, "max_completion_length", None)
    reasons = {
        "it adds |logp - old_logp| to single tokens (abs_kl_coef), a term that TRL's loss does not "
        "have": not _is(plan.abs_kl_coef, 0.0),
        "it clips the ratio whatever the sign of the advantage (both_sides)": plan.both_sides,
        "it keeps a gradient beyond the clip (beyond_low, beyond_high)": not (
            _is(plan.beyond_low, 0.0) and _is(plan.beyond_high, 0.0)
        ),
        "it has an entropy coefficient per token, and TRL's is one number": isinstance(
            plan.entropy_coef, Tensor
        )
        and plan.entropy_coef.ndim > 0,
        "a weight of it is negative, which turns TRL's clip around": bool(
            (torch.as_tensor(plan.weight) < 0).any()
        ),
        f"it averages by {plan.normaliser}, loss_type = {trainer.loss_type!r} does not (it carries "
        f"{', '.join(averages)}; 'grpo' carries seq_mean, 'dr_grpo' constant)": plan.normaliser
        not in averages,
        f"its constant_length is {plan.constant_length} and max_completion_length {length}: set "
        "them equal": plan.normaliser == "constant" and plan.constant_length != length,
        f"its ratio is per {plan.ratio_level}, importance_sampling_level is {level!r}: set it to "
        f"{plan.ratio_level!r}": plan.ratio_level != level,
        f"it clips the ratio, and loss_type = {trainer.loss_type!r} has no clip (use one of "
        f"{', '.join(CLIPPED_LOSSES)})": clipped and trainer.loss_type not in CLIPPED_LOSSES,
        "its entropy bonus and the trainer's own (entropy_coef, use_adaptive_entropy) are two: "
        "set the trainer's to 0": not _is(plan.entropy_coef, 0.0) and own_bonus(trainer),
    }
    return next((text for text, holds in reasons.items() if holds), "")


def own_bonus(trainer: Any) -> bool:
    """Whether the trainer has an entropy bonus of its own."""
    return bool(trainer.args.entropy_coef) or bool(getattr(trainer, "use_adaptive_entropy", False))


def check_method(method: Method, trainer: Any) -> TokenPlan:
    """The plan of a made-up step; ConfigError where TRL's loss cannot carry such a plan."""
    name = getattr(method, "name", type(method).__name__)
    if "influence_marginal" in method.needs:
        raise ConfigError(
            f"{name} cannot be carried by TRL's loss: it needs the gradient of the whole step "
            "before the loss is made; use `entropy-lab train`"
        )
    world = trainer.accelerator.num_processes
    if world > 1 and remembers(method):
        raise ConfigError(
            f"{name} keeps a memory of all tokens, and {world} processes would keep {world} "
            "different ones: run it in one process"
        )
    share = trainer.args.generation_batch_size // world
    if world > 1 and own_advantages(method) and share % trainer.num_generations:
        raise ConfigError(
            f"{name} has advantages of its own, and a process holds {share} responses, no whole "
            f"groups of num_generations = {trainer.num_generations}: make it a multiple"
        )
    batch, stats = _made_up()
    state = method.begin_rollout(batch, stats, method.initial_state())
    plan = plan_step(method, [batch], [stats], state)[0][0]
    reason = why_not(plan, trainer)
    if reason:
        raise ConfigError(f"{name} cannot be carried by TRL's loss: {reason}")
    return plan


def remembers(method: Method) -> bool:
    """Whether it carries a memory from rollout to rollout or step to step."""
    kind = type(method)
    names = ("begin_rollout", "end_step", "initial_state")
    return any(getattr(kind, n, None) is not getattr(Method, n) for n in names)


def own_advantages(method: Method) -> bool:
    """Whether its advantages are not the group-relative ones, which TRL makes itself."""
    return getattr(type(method), "advantages", None) is not Method.advantages


def scope_of(method: Method, trainer: Any) -> tuple[Method, str, str]:
    """The method with the scope that can be had, that scope, and what to say about it.

    The statistics of a whole step are had where its micro-batches lie in one rollout and in one
    process: a pass without gradients over them, which the probe shares, comes first.
    """
    scope = getattr(method, "scope", "")
    if scope not in ("minibatch", "rollout"):
        return method, scope, ""
    args = trainer.args
    each, slices = args.gradient_accumulation_steps, args.steps_per_generation
    world, period = trainer.accelerator.num_processes, slices * trainer.num_iterations
    why = ""
    if world > 1:
        why = f"{world} processes each plan their own micro-batches"
    elif scope == "minibatch" and period % each:
        why = f"a step of {each} micro-batches mixes rollouts of {period}"
    if not why:
        return method, scope, ""
    return replace(method, scope="microbatch"), "microbatch", f"{scope} was asked for: {why}"  # type: ignore[type-var]


def _is(value: Tensor | float, plain: float) -> bool:
    return bool((torch.as_tensor(value) == plain).all())


def _made_up() -> tuple[TokenBatch, TokenStats]:
    """Four responses of six tokens, two groups, off the policy that sampled them."""
    rng = torch.Generator().manual_seed(0)
    token = torch.randint(5, (4, 6), generator=rng)
    stats = token_stats(torch.randn(4, 6, 5, generator=rng), token)
    wide = torch.tensor([1.0, -1.0, 0.7, -0.7])[:, None].expand(4, 6).contiguous()
    batch = TokenBatch(
        token_id=token,
        mask=torch.ones(4, 6, dtype=torch.bool),
        advantage=wide,
        old_logp=stats.logp - 0.1,
        old_entropy=stats.entropy,
        uid=torch.arange(4),
        group=torch.tensor([0, 0, 1, 1]),
        reward=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        truncated=torch.zeros(4, dtype=torch.bool),
    )
    return batch, stats
