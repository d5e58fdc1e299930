"""What is read of a verl engine and of its minibatch besides the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

import torch


def flag(data: Any, name: str, default: Any) -> Any:
    """A value that a minibatch carries for all of its rows."""
    tools = import_module("verl.utils.tensordict_utils")
    value = tools.get_non_tensor_data(data=data, key=name, default=default)
    return default if value is None else value


def device_of(engine: Any) -> torch.device:
    """Where the collectives of the engine's ranks take tensors."""
    module = getattr(engine, "module", None)
    first = module[0] if isinstance(module, list) and module else module
    parameter = next(first.parameters(), None) if isinstance(first, torch.nn.Module) else None
    backend = str(torch.distributed.get_backend_config()) if _initialized() else "gloo"
    if "cpu:gloo" in backend or backend == "gloo" or parameter is None:
        return torch.device("cpu")
    return parameter.device


def _initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def learning_rate(engine: Any) -> float:
    """That of the optimizer's first group, as verl reports it; NaN without one."""
    groups = getattr(getattr(engine, "optimizer", None), "param_groups", None)
    return float(groups[0]["lr"]) if groups else float("nan")


def grad_norm(outputs: Any) -> float:
    """The norm before clipping that verl returns with a step; NaN where there is none."""
    metrics = outputs.get("metrics", {}) if isinstance(outputs, Mapping) else {}
    value = metrics.get("grad_norm")
    return float("nan") if value is None else float(value)


def clip_factor(engine: Any, norm: float) -> float:
    """kappa, by which clipping to the engine's clip_grad scales gradients of this norm."""
    clip = getattr(getattr(engine, "optimizer_config", None), "clip_grad", None)
    return min(1.0, float(clip) / (norm + 1e-6)) if clip and norm == norm else float("nan")


def loss_scale(engine: Any) -> float:
    """The factor on the loss under float16 training, 1 elsewhere; read before the step moves it."""
    scaler = getattr(engine, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def temperature_of(data: Any) -> float:
    """The temperature of the minibatch; NaN where its rows have different ones."""
    value = data["temperature"] if "temperature" in data.keys() else 1.0
    if not isinstance(value, torch.Tensor):
        return float(value)
    lowest, highest = (float(t) for t in value.float().aminmax())
    return lowest if lowest == highest else float("nan")


def end_tokens(engine: Any) -> tuple[int, ...]:
    """The tokens that end a response, () where the engine's model does not say."""
    model = getattr(engine, "model_config", None)
    for name in ("generation_config", "hf_config"):
        value = getattr(getattr(model, name, None), "eos_token_id", None)
        if isinstance(value, int):
            return (value,)
        if value:
            return tuple(int(v) for v in value)
    return ()


def plain_config(config: Any, depth: int = 6) -> Any:
    """A config object as JSON can hold it; what is not plain becomes its text."""
    if depth == 0:
        return str(config)
    if is_dataclass(config) and not isinstance(config, type):
        named = {f.name: getattr(config, f.name, None) for f in fields(config)}
        skipped = ("model_config", "engine", "profiler", "checkpoint", "global_batch_info")
        return {k: plain_config(v, depth - 1) for k, v in named.items() if k not in skipped}
    if isinstance(config, Mapping):
        return {str(k): plain_config(v, depth - 1) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [plain_config(v, depth - 1) for v in config]
    return config if isinstance(config, str | int | float | bool | None) else str(config)
