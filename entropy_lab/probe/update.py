"""What an optimizer made of the gradient: its step as a sum of named parts, parameter by parameter.

Adam(W), k the step count, v^ after the update, P = 1/(sqrt(v^) + eps), kg the clipped gradient:
    delta = -lr P [beta1 m_prev + (1 - beta1) kg] / (1 - beta1^k) - lr wd theta
SGD: delta = -lr [mu buf_prev + (1 - dampening) (kg + wd theta)], without dampening on a first step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from entropy_lab.probe.optimizers import Optimizers, loss_scale_left, owners
from entropy_lab.probe.path import Named
from entropy_lab.probe.world import ALONE, World
from entropy_lab.stats.moments import accumulation

SUPPORTED = "SGD (momentum, dampening), Adam and AdamW"


@dataclass
class Update:
    """One step's parts by parameter name; every tensor has its parameter's shape.

    grad, momentum, decay: parts of delta due to this step's gradient, to earlier ones, to weight
    decay. weight: lr P (1 - beta1)/(1 - beta1^k), or lr (1 - dampening): minus the derivative of
    delta by the clipped gradient with P held. bend: what P's own dependence on the gradient adds
    to that derivative (0 for SGD). clipped: the gradient that reached the optimizer. eventual, of
    provisional steps alone: what `grad` adds up to once momentum has passed it on.
    """

    grad: Named = field(default_factory=dict)
    momentum: Named = field(default_factory=dict)
    decay: Named = field(default_factory=dict)
    weight: Named = field(default_factory=dict)
    bend: Named = field(default_factory=dict)
    clipped: Named = field(default_factory=dict)
    eventual: Named = field(default_factory=dict)

    def put(self, name: str, values: Parts) -> None:
        """grad, momentum, decay, weight and bend of one parameter."""
        for into, value in zip(
            (self.grad, self.momentum, self.decay, self.weight, self.bend), values, strict=True
        ):
            into[name] = value


@dataclass
class Before:
    """What the parts need from before the step: first moments (copies; None: none yet) and
    gradients; pushed: the parameters that had one."""

    first: dict[str, Tensor | None]
    clipped: Named
    pushed: frozenset[str]


def check_supported(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError naming what is supported where the step cannot be taken apart."""
    kind = type(optimizer)
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam):
        raise ValueError(
            f"influence cannot take apart a step of {kind.__name__}: it supports {SUPPORTED}; set "
            "deep_every=0 to log without it"
        )
    for group in optimizer.param_groups:
        for flag in ("amsgrad", "nesterov", "maximize"):
            if group.get(flag):
                raise ValueError(
                    f"influence cannot take apart a step of {kind.__name__} with {flag}=True: it "
                    f"supports {SUPPORTED} without it; set deep_every=0 to log without it"
                )


def before_step(model: nn.Module, optimizers: Optimizers, world: World = ALONE) -> Before:
    """Copies of the first moments and of the gradients as they enter the optimizers."""
    first: dict[str, Tensor | None] = {}
    clipped: Named = {}
    owner = owners(optimizers)
    left = {o: loss_scale_left(o) for o in optimizers}
    trained = world.trained(model)
    for name, p in trained.items():
        optimizer = owner[p][0] if p in owner else None
        key = "momentum_buffer" if isinstance(optimizer, torch.optim.SGD) else "exp_avg"
        moment = optimizer.state.get(p, {}).get(key) if optimizer else None
        first[name] = None if moment is None else _copy(world.part(moment))
        clipped[name] = _copy(world.part(torch.zeros_like(p) if p.grad is None else p.grad))
        if optimizer is not None and left[optimizer] != 1:
            clipped[name] /= left[optimizer]
    pushed = frozenset(n for n, p in trained.items() if p.grad is not None)
    return Before(first, clipped, pushed)


def after_step(
    model: nn.Module,
    optimizers: Optimizers,
    before: Before,
    start: Named,
    world: World = ALONE,
) -> Update:
    """The parts of the step that was just taken; `start` holds theta from before it."""
    owner = owners(optimizers)
    update = Update(clipped=before.clipped)
    for name, p in world.trained(model).items():
        if p not in owner or name not in before.pushed:
            zero = torch.zeros_like(before.clipped[name])
            values = (zero, zero, zero, zero, zero)
        else:
            optimizer, group = owner[p]
            part = _sgd if isinstance(optimizer, torch.optim.SGD) else _adam
            state = optimizer.state.get(p, {})
            state = {k: world.part(v) if isinstance(v, Tensor) else v for k, v in state.items()}
            theta = start[name].to(p.device, before.clipped[name].dtype)
            values = part(group, state, before.first[name], before.clipped[name], theta)
        update.put(name, values)
    return update


def provisional_step(model: nn.Module, optimizer: torch.optim.Optimizer, clipped: Named) -> Update:
    """The parts of the step that the optimizer would take on the gradient `clipped`.

    Nothing moves. Raises ValueError where the optimizer cannot be taken apart.
    """
    check_supported(optimizer)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    update = Update(clipped=clipped)
    sgd = isinstance(optimizer, torch.optim.SGD)
    for name, p in _trained(model):
        g = _copy(clipped[name])
        factor = 0.0
        if p not in groups:
            zero = torch.zeros_like(g)
            values = (zero, zero, zero, zero, zero)
        elif sgd:
            m = optimizer.state.get(p, {}).get("momentum_buffer")
            values = _sgd(groups[p], {}, None if m is None else _copy(m), g, _copy(p))
            factor = 1 / (1 - float(groups[p]["momentum"]))
        else:
            state, m = _adam_after(groups[p], optimizer.state.get(p, {}), g, _copy(p))
            values = _adam(groups[p], state, m, g, _copy(p))
            beta1 = float(groups[p]["betas"][0])
            factor = (1 - beta1 ** state["step"]) / (1 - beta1)
        update.put(name, values)
        update.eventual[name] = factor * values[0]
    return update


def _adam_after(
    group: dict[str, Any], state: dict[str, Any], g: Tensor, t: Tensor
) -> tuple[dict[str, Any], Tensor | None]:
    """(the state after a step on g, the first moment before it)."""
    beta1, beta2 = (float(b) for b in group["betas"])
    coupled = not group.get("decoupled_weight_decay", False)
    entering = g + float(group["weight_decay"]) * t if coupled else g
    m, v = (None if k not in state else _copy(state[k]) for k in ("exp_avg", "exp_avg_sq"))
    first = (1 - beta1) * entering if m is None else beta1 * m + (1 - beta1) * entering
    square = (1 - beta2) * entering.square()
    second = square if v is None else beta2 * v + square
    k = float(state.get("step", 0)) + 1
    return {"step": k, "exp_avg": first, "exp_avg_sq": second}, m


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _adam(
    group: dict[str, Any], state: dict[str, Any], m: Tensor | None, g: Tensor, t: Tensor
) -> Parts:
    lr, eps, wd = float(group["lr"]), float(group["eps"]), float(group["weight_decay"])
    beta1, beta2 = (float(b) for b in group["betas"])
    k = float(state["step"])
    left1, left2 = 1 - beta1**k, 1 - beta2**k
    average, square = (state[name].to(g.dtype) for name in ("exp_avg", "exp_avg_sq"))
    root = (square / left2).sqrt()
    weight = lr * (1 - beta1) / left1 / (root + eps)
    momentum = torch.zeros_like(g) if m is None else -lr * beta1 / left1 * m / (root + eps)
    coupled = not group.get("decoupled_weight_decay", False)
    decay = -weight * wd * t if coupled else -lr * wd * t
    entering = g + wd * t if coupled else g
    bend = lr * (average / left1) * (1 - beta2) * entering
    bend = bend / (left2 * root * (root + eps) ** 2)
    moving = root > 0
    zero = torch.zeros_like(root)
    return (
        -weight * g,
        momentum,
        decay,
        torch.where(moving, weight, zero),
        torch.where(moving, bend, zero),
    )


def _sgd(
    group: dict[str, Any], state: dict[str, Any], m: Tensor | None, g: Tensor, t: Tensor
) -> Parts:
    lr, mu, wd = float(group["lr"]), float(group["momentum"]), float(group["weight_decay"])
    # The first step sets the buffer to the gradient: dampening comes in from the second on.
    factor = lr if m is None else lr * (1 - float(group["dampening"]))
    momentum = torch.zeros_like(g) if m is None else -lr * mu * m
    weight = torch.full_like(g, factor)
    return -weight * g, momentum, -factor * wd * t, weight, torch.zeros_like(g)


def _copy(x: Tensor) -> Tensor:
    """In float32 where it is shorter: the parts are sums of small differences."""
    return x.detach().to(accumulation(x.dtype), copy=True)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]
