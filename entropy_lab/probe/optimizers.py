"""The optimizers of one policy step, as torch's own hooks see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

Optimizers = tuple[torch.optim.Optimizer, ...]
Given = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


def innermost(given: Given) -> Optimizers:
    """The optimizers that move the weights: wrappers around them (accelerate's) are taken off.

    Raises ValueError for DeepSpeed's, whose inner optimizer moves other tensors than the weights,
    and TypeError for what is no optimizer.
    """
    several = given if isinstance(given, list | tuple) else [given]
    return tuple(_unwrapped(optimizer) for optimizer in several)


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    seen = optimizer
    while True:
        kind = type(seen)
        if "deepspeed" in f"{kind.__module__}.{kind.__name__}".lower():
            raise ValueError(
                f"{kind.__name__} steps inside DeepSpeed's engine, where torch's hooks meet stale "
                "weights: use entropy_lab.adapters.loop.attach(engine.module, [], ..., "
                "engine=engine)"
            )
        inner = getattr(seen, "optimizer", None)
        if inner is None:
            break
        seen = inner
    if not isinstance(seen, torch.optim.Optimizer):
        raise TypeError(
            f"{kind.__name__} is no torch.optim.Optimizer: the probe needs its step hooks"
        )
    return seen


def param_groups(optimizers: Iterable[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def owners(
    optimizers: Iterable[torch.optim.Optimizer],
) -> dict[nn.Parameter, tuple[torch.optim.Optimizer, dict[str, Any]]]:
    """The optimizer and the group of each parameter that one of them moves."""
    return {
        p: (optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }


def mean_lr(optimizers: Iterable[torch.optim.Optimizer]) -> float:
    """The learning rate of the step; over groups, the mean weighted by parameter count."""
    groups = param_groups(optimizers)
    rates = [float(g["lr"]) for g in groups]
    if len(set(rates)) == 1:
        return rates[0]
    sizes = [sum(p.numel() for p in g["params"]) for g in groups]
    total = sum(sizes)
    return sum(s * r for s, r in zip(sizes, rates, strict=True)) / total if total else float("nan")


def grads_are_gone(optimizers: Iterable[torch.optim.Optimizer]) -> bool:
    """Whether no parameter has a gradient: zero_grad() has been called, or backward never was."""
    groups = param_groups(optimizers)
    return bool(groups) and all(p.grad is None for g in groups for p in g["params"])


def found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer is about to skip its step because GradScaler met an overflow.

    For the others GradScaler does not call `step` at all, so their hooks do not run.
    """
    flag = getattr(optimizer, "found_inf", None)
    return flag is not None and bool(float(flag))


def loss_scale_left(optimizer: torch.optim.Optimizer) -> float:
    """The factor still in `.grad` when a step begins: GradScaler leaves it to fused optimizers."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


class StepHooks:
    """Calls `before` ahead of the first of the optimizers' steps and `after` behind the last.

    A policy step is over once each optimizer has stepped. Where one is about to step again and
    another has not, `missed` is told and the step is ended first.
    """

    def __init__(
        self,
        optimizers: Optimizers,
        before: Callable[[torch.optim.Optimizer, tuple, dict], None],
        after: Callable[[], None],
        missed: Callable[[int], None],
    ) -> None:
        self._count = len(optimizers)
        self._before, self._after, self._missed = before, after, missed
        self._stepped: set[int] = set()
        self._handles = []
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._on_step))
            self._handles.append(optimizer.register_step_post_hook(self._on_stepped))

    def _on_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if id(optimizer) in self._stepped:
            self.end()
        if not self._stepped:
            self._before(optimizer, args, kwargs)

    def _on_stepped(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._stepped.add(id(optimizer))
        if len(self._stepped) == self._count:
            self._stepped.clear()
            self._after()

    def end(self) -> None:
        """End a step that not all of the optimizers have taken; nothing where none is under way."""
        if self._stepped:
            left = self._count - len(self._stepped)
            self._stepped.clear()
            self._missed(left)
            self._after()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
