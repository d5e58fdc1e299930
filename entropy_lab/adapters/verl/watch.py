"""What the loss of one minibatch does to each token, read while verl trains on it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from entropy_lab.adapters.verl.data import ROW, padded
from entropy_lab.adapters.verl.measure import place


@dataclass
class Micro:
    """One micro-batch under the loss: what verl does not pass on, and what a method did.

    entropy (B, T) nats with its graph, None where the model output has none; data: the
    micro-batch; step: of the optimizer; rank: data-parallel. weight (B, T) and flags (B, T) uint8
    are set by a method of ours.
    """

    data: Any
    model_output: Any
    step: int = 0
    rank: int = 0
    weight: Tensor | None = None
    flags: Tensor | None = None

    @property
    def uid(self) -> Tensor | None:
        """A number for each row, unique in the step over all ranks, int64 (B,)."""
        return (self.rank << 32) + self.data[ROW] if ROW in self.data.keys() else None

    @property
    def entropy(self) -> Tensor | None:
        value = self.model_output.get("entropy")
        if value is None:
            return None
        return import_module("verl.workers.utils.padding").no_padding_2_padding(value, self.data)

    def field(self, name: str) -> Tensor | None:
        """A response field of the micro-batch, (B, T), None where verl does not carry it."""
        return padded(self.data[name]) if name in self.data.keys() else None


current: ContextVar[Micro | None] = ContextVar("entropy_lab_micro", default=None)


@dataclass
class _Seen:
    rows: Tensor
    micro: Micro
    values: dict[str, Tensor] = field(default_factory=dict)


class Watch:
    """Stands between an engine and its loss function; the loss and its gradients stay verl's.

    gradients: whether to take c = -dL/dlogp and e = -dL/dentropy by hooks on the model output. An
    error of ours goes to `failed` and the loss runs as if nobody watched.
    """

    def __init__(
        self,
        loss_function: Callable,
        step: int,
        rank: int,
        gradients: bool,
        failed: Callable[[Exception], None],
    ) -> None:
        self._inner, self._step, self._rank = loss_function, step, rank
        self._gradients, self._failed = gradients, failed
        self._seen: list[_Seen] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output, data = kwargs.get("model_output"), kwargs.get("data")
        if output is None or data is None:  # a call for something else, e.g. distillation
            return self._inner(*args, **kwargs)
        micro = Micro(data, output, self._step, self._rank)
        if self._gradients:
            try:
                self._hook(micro)
            except Exception as error:
                self._failed(error)
        token = current.set(micro)
        try:
            return self._inner(*args, **kwargs)
        finally:
            current.reset(token)

    def _hook(self, micro: Micro) -> None:
        cut = import_module("verl.workers.utils.padding").no_padding_2_padding
        output, data = micro.model_output, micro.data
        seen = _Seen(data[ROW], micro)
        seen.values["logp"] = cut(output["log_probs"].detach(), data)
        for name, key in (("grad_logp", "log_probs"), ("grad_entropy", "entropy")):
            value = output.get(key)
            into = seen.values[name] = torch.zeros_like(seen.values["logp"])
            if value is not None and value.requires_grad:
                value.register_hook(self._adder(into, data, cut))
            if name == "grad_entropy" and value is not None:
                seen.values["entropy"] = cut(value.detach(), data)
        self._seen.append(seen)

    def _adder(self, into: Tensor, data: Any, cut: Callable) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:  # returns None: the gradient is left alone
            try:
                into.sub_(cut(gradient.detach(), data))
            except Exception as error:
                self._failed(error)

        return add

    def collect(self, size: int, width: int, scale: float) -> dict[str, Tensor]:
        """What was seen, each (size, width) on the CPU, rows as in the minibatch.

        logp and entropy of the loss forward (entropy NaN where verl did not compute it),
        grad_logp and grad_entropy times `scale`, weight, flags, micro: the number of the row's
        micro-batch. Raises ValueError where a row was not seen, or twice.
        """
        rows = torch.cat([s.rows.cpu() for s in self._seen]) if self._seen else torch.empty(0)
        if sorted(rows.tolist()) != list(range(size)):
            raise ValueError(f"the loss saw {len(rows)} of {size} rows of the minibatch once")
        out = {name: torch.zeros(size, width) for name in ("logp", "grad_logp", "grad_entropy")}
        out["entropy"] = torch.full((size, width), float("nan"))
        out["weight"] = torch.ones(size, width)
        out["flags"] = torch.zeros(size, width, dtype=torch.uint8)
        out["micro"] = torch.zeros(size, width, dtype=torch.int64)
        for number, seen in enumerate(self._seen):
            values = {name: value.float().cpu() for name, value in seen.values.items()}
            for name in ("grad_logp", "grad_entropy"):
                values[name] = values[name] * scale
            for name in ("weight", "flags"):
                value = getattr(seen.micro, name)
                if value is not None:
                    values[name] = value.cpu()
            place(out, seen.rows.cpu(), values)
            out["micro"][seen.rows.cpu()] = number
        return out

    @property
    def dp_size(self) -> int:
        """By how many ranks verl multiplied the loss, because their gradients are averaged."""
        if not self._seen:
            return 1
        found = self._seen[0].micro.data.get("dp_size", None)
        return int(getattr(found, "data", found) or 1)

    def release(self) -> None:
        """Let go of the model outputs."""
        for seen in self._seen:
            seen.micro.model_output = {}
