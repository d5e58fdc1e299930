"""The noise floor: how far a measured dH is from the same change computed in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from entropy_lab.probe.path import Named, swapped
from entropy_lab.probe.scorer import Score, take_rows, untouched_rng, without_dropout
from entropy_lab.probe.window import Probed

MOST_RESPONSES = 8


def noise_floor(
    model: nn.Module, score: Score, start: Named, probed: Probed
) -> tuple[float, float, int]:
    """(floor, bias, rows): rms and mean of dH - dH_ref over a few responses, nats.

    dH_ref is H(theta') - H(theta) with both sets of weights upcast to float64 and everything
    computed in it, on the first responses of `probed`. Call it after the step; nothing moves.
    """
    rows = torch.arange(min(MOST_RESPONSES, len(probed.batch.mask)))
    inputs = take_rows(probed.inputs, rows)
    end = {n: p.detach() for n, p in model.named_parameters()}
    ends = [
        entropy64(model, score, inputs, {**end, **theta})
        for theta in ({n: start[n].to(end[n].device) for n in start}, {})
    ]
    picked = rows.to(probed.batch.mask.device)
    mask = probed.batch.mask[picked]
    error = (probed.dH[picked].double() - (ends[1] - ends[0]))[mask]
    if not len(error):
        return float("nan"), float("nan"), 0
    return float(error.square().mean().sqrt()), float(error.mean()), len(error)


def entropy64(model: nn.Module, score: Score, inputs: Any, theta: Mapping[str, Tensor]) -> Tensor:
    """Entropy (B, T) of a micro-batch with the parameters `theta`, all of it in float64."""
    values = {n: p.double() if p.is_floating_point() else p for n, p in theta.items()}
    with ExitStack() as stack:
        for context in (torch.no_grad(), untouched_rng(model), without_dropout(model)):
            stack.enter_context(context)
        stack.enter_context(swapped(model, values))
        stack.enter_context(_double_buffers(model))
        stack.enter_context(torch.autocast(_device_type(theta), enabled=False))
        stack.enter_context(_KeepDouble())
        return score(inputs).entropy.detach().double()


def _device_type(theta: Mapping[str, Tensor]) -> str:
    return next(iter(theta.values())).device.type


@contextmanager
def _double_buffers(model: nn.Module) -> Iterator[None]:
    taken: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    taken.append((module, name, buffer))
                    module._buffers[name] = buffer.double()
        yield
    finally:
        for module, name, buffer in taken:
            module._buffers[name] = buffer


class _KeepDouble(TorchFunctionMode):
    """Model code that asks for float32 (norms, softmax, rotary angles) gets float64."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        if func is torch.Tensor.float:
            return args[0].double()
        if func is torch.Tensor.to:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **kwargs)
