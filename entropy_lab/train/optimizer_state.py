"""The state of an optimizer as named tensors and JSON, the same for any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_lab.errors import RunError
from entropy_lab.train.parallel.pieces import is_sharded, own_part, whole_on_host


def split_optimizer(
    optimizer: torch.optim.Optimizer, keep: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, all else) of the optimizer's state; keep: False where another rank writes them."""
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                if is_sharded(value):
                    value = whole_on_host(value, keep)
                tensors[f"{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"state": plain, "param_groups": saved["param_groups"]}


def restore_optimizer(
    path: Path,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    document: dict[str, Any],
) -> None:
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in document["state"].items()}
    if all(p.device.type == "cpu" for group in optimizer.param_groups for p in group["params"]):
        # In memory of their own, which the file may leave; a device takes copies anyway.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        own = tensor
        if int(index) < len(params) and is_sharded(p := params[int(index)]):
            own = own_part(tensor, p) if tensor.shape == p.shape else tensor
        state.setdefault(int(index), {})[name] = own
    current = optimizer.state_dict()["param_groups"]
    sizes = [len(g["params"]) for g in current]
    if sizes != [len(g["params"]) for g in document["param_groups"]]:
        raise RunError(f"{path} was saved from an optimizer with other parameter groups")
    # JSON has no tuples; AdamW's betas go back to what this optimizer uses.
    groups = [
        {k: tuple(v) if isinstance(now.get(k), tuple) else v for k, v in saved.items()}
        for now, saved in zip(current, document["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
