"""No-grad statistics of micro-batches, on one code path, remembered until the parameters move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from entropy_lab.probe.optimizers import Given, innermost
from entropy_lab.probe.precision import SAME, Precision
from entropy_lab.types import TokenStats

Score = Callable[[Any], TokenStats]


class Scorer:
    """Measure micro-batches at the current parameters; ask twice, pay once.

    `score(inputs)` runs the model on one micro-batch and returns its TokenStats. `measure` calls
    it without gradients, leaves every random state as it was, and remembers the result of the
    identical `inputs` object until a parameter changes, by whatever hand. So the "after" of one
    step is the "before" of the next, at no forward, where both are wanted. precision: the
    arithmetic of every pass.
    """

    def __init__(
        self,
        model: nn.Module,
        score: Score,
        optimizers: Given,
        precision: Precision = SAME,
    ):
        self.model = model
        self.score = score
        self.precision = precision
        self._memo: dict[int, tuple[Any, TokenStats]] = {}
        self._seen: list[tuple[int, int]] = []
        # A fused or foreign step need not count as an in-place change, so it is told of.
        self._handles = [
            o.register_step_post_hook(lambda *_: self.forget()) for o in innermost(optimizers)
        ]

    def measure(self, inputs: Any) -> TokenStats:
        """Statistics of `inputs` at the present parameters, detached."""
        self._check_parameters()
        known = self._memo.get(id(inputs))
        if known is None:
            # The reference to `inputs` keeps its id from being given to another object.
            known = self._memo[id(inputs)] = (inputs, self.fresh(inputs))
        return known[1]

    def fresh(self, inputs: Any) -> TokenStats:
        """The same measurement, always by a forward pass of its own."""
        with torch.no_grad(), untouched_rng(self.model), without_dropout(self.model):
            with self.precision.applied(self.model):
                return self.score(inputs).detach()

    def with_grad(self, inputs: Any) -> TokenStats:
        """A pass of its own that keeps its graph, for gradients by the parameters."""
        with torch.enable_grad(), untouched_rng(self.model), without_dropout(self.model):
            with self.precision.applied(self.model):
                return self.score(inputs)

    def use(self, precision: Precision) -> None:
        """Another arithmetic from now on."""
        if precision != self.precision:
            self.precision = precision
            self.forget()

    def put(self, inputs: Any, stats: TokenStats) -> None:
        """Remember a result that another pass is known to share bit for bit."""
        self._check_parameters()
        self._memo[id(inputs)] = (inputs, stats)

    def _check_parameters(self) -> None:
        now = [(p.data_ptr(), p._version) for p in self.model.parameters()]
        if now != self._seen:
            self._seen = now
            self._memo.clear()

    def forget(self) -> None:
        """Drop everything remembered: the parameters have changed."""
        self._memo.clear()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.forget()


@contextmanager
def untouched_rng(model: nn.Module) -> Iterator[None]:
    """Give every random state that the model could draw from back as it was."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


DROPOUT_ATTRIBUTES = ("attention_dropout", "attn_dropout", "dropout", "hidden_dropout")


def active_dropout(model: nn.Module) -> list[nn.Module]:
    """Modules that would drop units in a forward pass now: in training mode, with a rate > 0."""

    def rate(module: nn.Module) -> float:
        if isinstance(module, nn.modules.dropout._DropoutNd):
            return module.p
        rates = (getattr(module, name, 0.0) for name in DROPOUT_ATTRIBUTES)
        return max((r for r in rates if isinstance(r, float)), default=0.0)

    return [m for m in model.modules() if m.training and rate(m) > 0]


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Put only the modules with active dropout in eval mode; without any, change nothing."""
    modules = active_dropout(model)
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
