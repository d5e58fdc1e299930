"""A method carried out by TRL's own loss, of which nothing is copied.

TRL reads the advantages, the clip bounds and the entropy coefficient after its forward pass: a
plan that is made from that pass reaches the loss through them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from entropy_lab.adapters.trl.plans import (
    check_method,
    own_advantages,
    remembers,
    resolve,
    scope_of,
    why_not,
)
from entropy_lab.adapters.trl.rollout import per_token
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import Method, plan_step
from entropy_lab.probe.window import MicroRecord
from entropy_lab.types import SELECTED, TokenBatch, TokenPlan, TokenStats

logger = logging.getLogger("entropy_lab.trl")
Pair = tuple[TokenBatch, TokenStats]


class Carrier:
    """Plans each micro-batch and writes the plan where the trainer's loss reads it."""

    def __init__(
        self, trainer: Any, method: Method, scope: str, told: str, bonus: bool
    ) -> None:
        self.trainer, self.method, self.scope, self.told = trainer, method, scope, told
        self.bonus = bonus
        self.state = method.initial_state()
        self.plan = TokenPlan()
        self._knobs: dict[tuple[int, str], tuple[Any, Any]] = {}  # owner and own value
        self._plans: dict[int, TokenPlan] = {}
        self._scalars: list[dict[str, float]] = []
        self._step: list[Pair] = []
        self._verified = False

    @property
    def name(self) -> str:
        return getattr(self.method, "name", type(self.method).__name__)

    def stuck(self) -> RunError:
        """The error of a micro-batch that could not be read: training without the method would
        be another experiment."""
        return RunError(
            f"{self.name} cannot be carried on: the probe failed to read a micro-batch (see "
            "events/ in the run directory)"
        )

    @property
    def reads_rollout(self) -> bool:
        """Whether it wants to see all of a rollout before the first step."""
        return remembers(self.method)

    @property
    def looks_ahead(self) -> bool:
        """Whether a step of several micro-batches is planned as one."""
        several = self.trainer.current_gradient_accumulation_steps > 1
        return several and self.scope == "minibatch"

    def advantages(self, batch: TokenBatch) -> Tensor | None:
        """The method's own advantages (B, T) of a rollout; None where they are TRL's."""
        if not own_advantages(self.method):
            return None
        found = self.method.advantages(batch)
        if not bool(found[batch.mask].isfinite().all()):
            raise ConfigError(
                f"{self.name} cannot make its advantages from what TRL keeps of this rollout "
                "(rewards that are None, or log-probabilities of the sampler that are not there): "
                "give every response a reward, and set num_iterations or steps_per_generation so "
                "that a rollout feeds more than one step"
            )
        return torch.where(batch.mask, found, 0.0)

    def begin_rollout(self, pairs: Sequence[Pair]) -> None:
        whole = TokenBatch.cat([b for b, _ in pairs])
        stats = TokenStats.cat([s for _, s in pairs])
        self.state = self.method.begin_rollout(whole, self._known(stats), self.state)

    def plan_ahead(self, micros: Sequence[Any], pairs: Sequence[Pair]) -> None:
        """The plans of a step's micro-batches, made from all of them."""
        plans = self._planned([b for b, _ in pairs], [s for _, s in pairs])
        self._plans = {id(m): plan for m, plan in zip(micros, plans, strict=True)}

    def prepare(self) -> None:
        """Before a loss forward: what an earlier plan left is taken back."""
        self.restore()
        if self.bonus:  # older versions ask before the forward whether entropy needs a gradient
            self._set("_entropy_bonus_enabled", True)

    def carry(self, micro: Any, batch: TokenBatch, stats: TokenStats, copy: dict[str, Any]) -> None:
        """Plan a micro-batch whose forward has just run, and tell the loss. copy: what it reads."""
        plan = self._plans.pop(id(micro), None) or self._planned([batch], [stats])[0]
        reason = why_not(plan, self.trainer)
        if reason:
            raise ConfigError(f"{self.name} cannot be carried by TRL's loss: {reason}")
        self.plan = plan
        weight = self.weight
        if isinstance(weight, Tensor) or weight != 1.0:
            copy["advantages"] = per_token(copy["advantages"], batch.mask) * weight
        self._set("epsilon_low", plan.clip_low)
        self._set("epsilon_high", plan.clip_high)
        if isinstance(plan.clip_low, Tensor) != isinstance(plan.clip_high, Tensor):
            for name in ("epsilon_low", "epsilon_high"):  # torch.clamp takes one kind of bound
                value = getattr(self.trainer, name)
                self._set(name, torch.as_tensor(value).expand(batch.mask.shape))
        dual = plan.dual_clip
        unbounded = not isinstance(dual, Tensor) and dual == float("inf")
        self._set("delta", None if unbounded else dual, self.trainer.args)
        coefficient = float(plan.entropy_coef)
        if coefficient or self.bonus:
            self._set("entropy_coef", coefficient)
            self._set("_entropy_bonus_enabled", True)
        if plan.scalars:
            self._scalars.append(plan.scalars)
        if self.reads_rollout:
            self._step.append((batch, stats))

    @property
    def weight(self) -> Tensor | float:
        """What the plan multiplies each token's advantage with."""
        mask = self.plan.mask
        if isinstance(mask, Tensor):
            return self.plan.weight * mask
        return self.plan.weight if mask else 0.0

    @property
    def flags(self) -> Tensor | None:
        chosen = self.plan.selected
        return None if chosen is None else SELECTED * chosen.to(torch.uint8)

    def scalars(self) -> dict[str, float]:
        """`method_*` of the step: the memory, and the plans' scalars, means over micro-batches."""
        told = self._scalars
        means = {k: sum(s[k] for s in told) / len(told) for k in told[0]} if told else {}
        self._scalars = []
        return {f"method_{k}": float(v) for k, v in {**self.state, **means}.items()}

    def end_step(self) -> None:
        """The memory after the optimizer's step."""
        if self._step:
            whole = TokenBatch.cat([b for b, _ in self._step])
            stats = TokenStats.cat([s for _, s in self._step])
            self.state = self.method.end_step(whole, self._known(stats), self.state)
        self._step = []

    def verify(self, records: Sequence[MicroRecord]) -> None:
        """Once: the gradient that came back has the plan's weights in it; RunError where not.

        Within a response -dL/dlogp / (A ratio) of tokens that no clip stops is the weight times
        one number, under every loss_type with a clip.
        """
        if self._verified or self.trainer.beta or self.trainer.loss_type in ("sapo", "vespo"):
            return
        self._verified = True
        for r in records:
            batch, weight = r.batch, torch.as_tensor(r.weight)
            ratio = (r.stats.logp - batch.old_logp).exp()
            free = batch.mask & (batch.advantage != 0) & (r.flags & 7 == 0) & (weight > 0)
            scale = torch.where(free, r.grad.grad_logp / (batch.advantage * ratio * weight), 0.0)
            level = scale.amax(1, keepdim=True)
            off = free & ((scale - level).abs() > 1e-2 * level.abs())
            pushed = batch.mask & (weight == 0) & (r.grad.grad_logp != 0)
            if bool((off | pushed).any()):
                raise RunError(
                    f"the gradient of the trainer's loss does not have the weights of {self.name} "
                    "in it: its _compute_loss reads the advantages before its forward pass, or "
                    "weights tokens itself; a method cannot be carried by this trainer"
                )

    def restore(self) -> None:
        """The trainer's own settings again."""
        for (_, name), (owner, value) in self._knobs.items():
            setattr(owner, name, value)
        self._knobs = {}

    def _set(self, name: str, value: Any, owner: Any = None) -> None:
        owner = self.trainer if owner is None else owner
        self._knobs.setdefault((id(owner), name), (owner, getattr(owner, name, None)))
        setattr(owner, name, value)

    def _known(self, stats: TokenStats) -> TokenStats | None:
        return stats if self.method.needs else None

    def _planned(self, batches: list[TokenBatch], stats: list[TokenStats]) -> list[TokenPlan]:
        # TRL's loss has its own weights for the sampler's mismatch.
        plain = [replace(b, rollout_weight=None) for b in batches]
        for name in self.method.needs & {"m0", "m1", "m2"}:
            if any(bool(getattr(s, name).isnan().all()) for s in stats):
                raise ConfigError(
                    f"{self.name} reads {name}, which cannot be had from this model's forward: use "
                    "a method that needs logp and entropy alone"
                )
        if "old_entropy" in self.method.needs and any(b.old_entropy is None for b in batches):
            raise ConfigError(f"{self.name} reads old_entropy, which is not known here")
        known = stats if self.method.needs else None
        if not any(bool(b.mask.any()) for b in batches):
            return [TokenPlan() for _ in batches]
        return [plan for plan, _ in plan_step(self.method, plain, known, self.state)]


def make_carrier(trainer: Any, method: Any, say: Callable[[str], None] = logger.warning) -> Carrier:
    """The carrier of a method; raises ConfigError where TRL's loss cannot carry it out."""
    chosen = resolve(method)
    plan = check_method(chosen, trainer)
    chosen, scope, told = scope_of(chosen, trainer)
    if told:
        say(f"method {getattr(chosen, 'name', chosen)}: scope microbatch; {told}")
    bonus = "entropy_coef" in (plan.scalars or {}) or bool(torch.as_tensor(plan.entropy_coef).any())
    return Carrier(trainer, chosen, scope, told, bonus)
