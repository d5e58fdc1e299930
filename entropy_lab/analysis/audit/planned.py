"""Methods that are interventions: a plan for each token, executed by the one policy loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropy_lab.analysis.audit.bugs import called, check_gradient, inputs_of
from entropy_lab.analysis.audit.candidate import Candidate, Leaves, Part, Push, Split
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import Intervention, plan_step
from entropy_lab.loss import policy_loss
from entropy_lab.types import TokenBatch, TokenGrad, TokenPlan, TokenStats


@dataclass(frozen=True)
class _Alone:
    """The method, planning every part by itself whatever its own scope."""

    method: Any
    scope: str = "microbatch"

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        return self.method.plan(batch, stats, state)


@dataclass
class Planned(Candidate):
    """An intervention of the registry, or a user's own."""

    def initial_state(self) -> Any:
        return self._hook("initial_state", None)

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats, state: Any) -> Any:
        return self._hook("begin_rollout", state, batch=batch, stats=stats, state=state)

    def end_step(self, batch: TokenBatch, stats: TokenStats, state: Any) -> Any:
        return self._hook("end_step", state, batch=batch, stats=stats, state=state)

    def push(self, parts: Sequence[Part], state: Any, split: Split = "own") -> Push:
        """Plan, loss, backward, as the training loop does."""
        method: Intervention = self.method if split == "own" else _Alone(self.method)  # type: ignore
        batches, stats = [p.batch for p in parts], [p.stats for p in parts]
        watched = inputs_of(*batches, *stats)

        def plan() -> list[Any]:
            return plan_step(method, batches, stats, state)

        plans = self._call("plan", plan, watched)
        grads = []
        for part, (plan_, share) in zip(parts, plans, strict=True):
            leaves = Leaves.of(part.stats)
            forward = TokenStats(leaves.logp, leaves.entropy, *_moments(part.stats))

            def loss(part=part, forward=forward, plan_=plan_, share=share) -> Tensor:
                return policy_loss(forward, part.batch, plan_, share).loss

            value = self._call("policy_loss", loss, watched)
            if value.requires_grad:
                value.backward()
            grads.append(leaves.grad())
        whole, grad = TokenBatch.cat(batches), TokenGrad.cat(grads)
        check_gradient(self.label, grad, whole)
        alone = getattr(method, "scope", "minibatch") == "microbatch"
        return Push(
            grad=grad,
            weight=_joined([p.weight for p, _ in plans], parts),
            omega=_joined([p.omega for p, _ in plans], parts),
            units=tuple(_units(parts)) if alone else (slice(0, len(whole.mask)),),
        )

    def _hook(self, name: str, default: Any, **named: Any) -> Any:
        hook = getattr(self.method, name, None)  # a user's own intervention may have none
        if hook is None:
            return default
        watched = inputs_of(*(v for k, v in named.items() if k != "state"))
        return self._call(name, hook, watched, **named)

    def _call(
        self, what: str, function: Callable[..., Any], watched: dict[str, Tensor], **named: Any
    ) -> Any:
        """function(**named); the error of a method of ours is about the log, not about a bug."""
        if self.kind != "registry":
            return called(self.label, function, watched, **named)
        try:
            return function(**named)
        except (ValueError, TypeError) as error:
            raise RunError(f"{self.label} cannot be audited on this log: {error}") from error


def instance(label: str, method: Any, params: dict[str, Any]) -> Planned:
    """A user's intervention, a class or an object with `plan`; ConfigError for wrong params."""
    if isinstance(method, type):
        try:
            method = method(**params)
        except TypeError as error:
            raise ConfigError(f"{label}: {error}") from error
    elif params:
        raise ConfigError(
            f"{label} is an object, which takes no parameters: name its class, or set them in "
            "the file"
        )
    if not callable(getattr(method, "advantages", None)):
        raise ConfigError(f"{label} has plan but no advantages: build it on entropy_lab's Method")
    return Planned(label, "intervention", params, method)


def _moments(stats: TokenStats) -> tuple[Tensor, Tensor, Tensor]:
    return stats.m0, stats.m1, stats.m2


def _units(parts: Sequence[Part]) -> list[slice]:
    ends = torch.tensor([len(p.batch.mask) for p in parts]).cumsum(0).tolist()
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _joined(values: list[Any], parts: Sequence[Part]) -> Tensor | None:
    """Per-token values of all parts (B, T); None where the plans have one number for all."""
    shapes = [p.batch.mask.shape for p in parts]
    if not any(isinstance(v, Tensor) and v.ndim for v in values):
        return None
    pairs = zip(values, shapes, strict=True)
    return torch.cat([torch.as_tensor(v).expand(shape) for v, shape in pairs])
