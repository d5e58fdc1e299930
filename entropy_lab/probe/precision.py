"""The arithmetic of a measuring pass: that of the loss forward, or float32 or float64 throughout,
with the parameters as they are (master) or rounded to the training dtype (cast)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ProbeDtype = Literal["auto", "same", "float32", "float64"]
Policy = Literal["master", "cast"]
LOW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Precision:
    """dtype: everything runs in it, whatever the model asks for; None: as the loss forward runs.

    autocast: dtype of the autocast around the loss forward, entered again where dtype is None.
    cast: the parameters are rounded to this dtype first; None: taken as they are.
    """

    dtype: torch.dtype | None = None
    autocast: torch.dtype | None = None
    cast: torch.dtype | None = None

    @contextmanager
    def applied(
        self, model: nn.Module, values: Mapping[str, Tensor] | None = None
    ) -> Iterator[None]:
        """Let `model` compute so, with `values` in place of its parameters of those names.

        `values` are used as they are, the other parameters as `weights` gives them. Parameters,
        buffers and autocast state are the same afterwards; gradients flow through. In an
        arithmetic of its own the model's kernels are plain ones (`plain_kernels`), and wherever
        something is exchanged activations are kept: a layer that recomputes them in the backward
        pass, after this has ended, would meet the parameters as they are.
        """
        named = dict(model.named_parameters())
        device = next(iter(named.values())).device.type
        chosen = dict(values or {})
        chosen |= {n: self.weights(p) for n, p in named.items() if n not in chosen}
        changed = {n: v for n, v in chosen.items() if v is not named[n]}
        torch.clear_autocast_cache()  # it may hold casts of weights that have moved since
        with ExitStack() as stack:
            if changed:
                stack.enter_context(swapped(model, changed))
            if changed or self.dtype is not None:
                stack.enter_context(activations_kept(model))
            if self.dtype is not None:
                stack.enter_context(plain_kernels(model))
                stack.enter_context(_wide_buffers(model, self.dtype))
                stack.enter_context(no_autocast(device))
            elif self.autocast is not None:
                stack.enter_context(torch.autocast(device, self.autocast))
            if self.dtype == torch.float64:
                stack.enter_context(_KeepDouble())
            yield

    def weights(self, p: Tensor) -> Tensor:
        """A parameter as the pass computes with it; itself where nothing is to be changed."""
        if not p.is_floating_point():
            return p
        own = p if self.cast is None else p.to(self.cast)
        return own.to(self.dtype or p.dtype)


SAME = Precision()


@dataclass(frozen=True)
class Setting:
    """What the user asked for: `dtype` and `policy` of the probe; see Probe."""

    dtype: ProbeDtype = "auto"
    policy: Policy = "master"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, ("auto", "same", "float32", "float64")),
            ("policy", self.policy, ("master", "cast")),
        ):
            if value not in known:
                raise ValueError(f"probe {name} must be one of {', '.join(known)}, got {value!r}")

    def resolve(self, model: nn.Module, autocast: torch.dtype | None) -> Measuring:
        """What is measured for a model whose loss forward runs under `autocast` (None: none)."""
        own = {p.dtype for p in model.parameters() if p.is_floating_point()}
        low = autocast or next((d for d in LOW if d in own), None)
        cast = (low or torch.bfloat16) if self.policy == "cast" else None
        main = Precision(autocast=autocast, cast=cast)
        if self.dtype in ("float32", "float64"):
            wanted = getattr(torch, self.dtype)
            if low or cast or own != {wanted}:
                main = Precision(wanted, cast=cast)
        half = low is not None and main.dtype is None
        single = Precision(torch.float32, cast=cast) if half else None
        rounded = cast or half or own & set(LOW)
        return Measuring(
            main,
            deep=single or main,
            fine=single if self.dtype == "auto" else None,
            training=Precision(autocast=autocast),
            dtype=str(main.dtype or low or next(iter(own))).removeprefix("torch."),
            policy="cast" if rounded else "master",
        )


@dataclass(frozen=True)
class Measuring:
    """main: how all probed rows are measured; deep: path forms and influence, whose differences
    drown in half precision; fine: how a few rows are measured again (None: not).

    training: how the loss forward runs. dtype, policy: of `main`, for the log.
    """

    main: Precision
    deep: Precision
    fine: Precision | None
    training: Precision
    dtype: str
    policy: Policy


@contextmanager
def swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the modules compute with `values` in place of their parameters of those names.

    Names are those of `named_parameters()`; a tied parameter is replaced in every place. The
    parameters themselves are not touched, so they are the same bits afterwards.
    """
    named = dict(model.named_parameters())
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    taken: list[tuple[nn.Module, str, nn.Parameter | None]] = []
    try:
        for name, value in values.items():
            for module, slot in places[id(named[name])]:
                taken.append((module, slot, module._parameters[slot]))
                module._parameters[slot] = value  # type: ignore[assignment]
        yield
    finally:
        for module, slot, parameter in reversed(taken):
            module._parameters[slot] = parameter


@contextmanager
def activations_kept(model: nn.Module) -> Iterator[None]:
    """No gradient checkpointing in the layers of a `transformers` model."""
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) is True]
    try:
        for layer in layers:
            layer.gradient_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True  # type: ignore[assignment]


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Attention and experts of a `transformers` model in operations that exist in every dtype.

    Flash kernels round to half precision whatever they are given, and the grouped product of
    experts has neither float64 nor a forward-mode rule. The model's own choice comes back.
    """
    config = getattr(model, "config", None)
    with ExitStack() as stack:
        for kind, plain in (("attn", ("sdpa", "eager")), ("experts", ("eager",))):
            own = getattr(config, f"_{kind}_implementation", None)
            switch = getattr(model, f"set_{kind}_implementation", None)
            if switch is not None and own is not None and own not in plain:
                switch("eager")
                stack.callback(switch, own)
        yield


@contextmanager
def no_autocast(device: str) -> Iterator[None]:
    """No autocast on `device`, not even one that the model's own code enters."""
    plain = torch.set_autocast_enabled

    def stay_off(kind: Any, enabled: bool | None = None) -> None:
        if enabled is None:  # the old form, for CUDA alone
            plain(False)
        else:
            plain(kind, enabled and kind != device)

    with torch.autocast(device, enabled=False), _torch_has("set_autocast_enabled", stay_off):
        yield


@contextmanager
def watched_autocast(device: str) -> Iterator[list[torch.dtype]]:
    """The dtypes of the autocasts that are on, or entered, on `device` while this lasts."""
    seen = [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []
    plain = torch.set_autocast_dtype

    def note(kind: str, dtype: torch.dtype) -> None:
        plain(kind, dtype)
        if kind == device and torch.is_autocast_enabled(device):
            seen.append(dtype)

    with _torch_has("set_autocast_dtype", note):
        yield seen


@contextmanager
def _torch_has(name: str, function: Callable[..., None]) -> Iterator[None]:
    """torch.autocast looks these functions up in torch each time, so it can be listened to."""
    own = getattr(torch, name)
    setattr(torch, name, function)
    try:
        yield
    finally:
        setattr(torch, name, own)


@contextmanager
def _wide_buffers(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    taken: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    taken.append((module, name, buffer))
                    module._buffers[name] = buffer.to(dtype)
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
