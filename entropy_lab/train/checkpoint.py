"""Checkpoints: model, optimizer and trainer state in safetensors and JSON; complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from entropy_lab.errors import RunError

Kind = Literal["checkpoints", "replay"]
_STATE = "state.json"
_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_EXTRA = "extra.safetensors"


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
    keep: int = 0,
    kind: Kind = "checkpoints",
) -> Path:
    """Write KIND/step-NNNNNN under the run; a name appears only when all of it is on disk.

    state: anything JSON can hold; tensors: extra named tensors, such as random states; keep: how
    many of the newest stay (0: all). Raises RunError where the disk refuses.
    """
    folder = Path(run_dir) / kind
    final = folder / f"step-{step:06d}"
    partial = folder / f"{final.name}.tmp"
    optimizer_tensors, optimizer_json = _split_optimizer(optimizer)
    contents = {_MODEL: _unaliased(model.state_dict()), _OPTIMIZER: optimizer_tensors}
    if tensors:
        contents[_EXTRA] = tensors
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums = {name: _write_tensors(partial / name, part) for name, part in contents.items()}
        document = {"step": step, "state": state, "optimizer": optimizer_json, "files": sums}
        _write(partial / _STATE, json.dumps(document, indent=1).encode())
        _sync(partial)
        _remove(final)
        os.replace(partial, final)
        _sync(folder)
    except OSError as e:
        raise RunError(f"cannot write the checkpoint {final}: {e.strerror or e}") from e
    if keep:
        for _, old in _checkpoints(folder)[:-keep]:
            _remove(old)
    return final


def complete_checkpoints(run_dir: str | Path, kind: Kind = "checkpoints") -> list[Path]:
    """The complete checkpoints of a run, by step; unfinished ones are passed over."""
    return [path for _, path in _checkpoints(Path(run_dir) / kind) if _complete(path)]


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    return next(reversed(complete_checkpoints(run_dir)), None)


def load_checkpoint(
    path: str | Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore model and optimizer in place, bit for bit; returns (state, tensors) as saved.

    Raises RunError naming the checkpoint where it is damaged or belongs to another model.
    """
    path = Path(path)
    document = _read_state(path)
    contents = {name: _read_tensors(path, name, s) for name, s in document["files"].items()}
    _load_model(path, model, contents[_MODEL])
    if optimizer is not None:
        _load_optimizer(path, optimizer, contents[_OPTIMIZER], document["optimizer"])
    return document["state"], contents.get(_EXTRA, {})


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("step-*"):
        digits = path.name.removeprefix("step-")
        if digits.isdecimal() and path.is_dir():
            found.append((int(digits), path))
    return sorted(found)


def _complete(path: Path) -> bool:
    try:
        sums = json.loads((path / _STATE).read_bytes())["files"]
        return all((path / name).stat().st_size == s["size"] for name, s in sums.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remove(path: Path) -> None:
    """Delete in two moves, so that a half-deleted checkpoint never carries a checkpoint's name."""
    if path.exists():
        doomed = path.with_name(f"{path.name}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _unaliased(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One name per storage: tied weights are written once."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    kept = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or key not in seen:
            kept[name] = tensor
        seen.add(key)
    return kept


def _split_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"state": plain, "param_groups": saved["param_groups"]}


def _load_optimizer(
    path: Path,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    document: dict[str, Any],
) -> None:
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in document["state"].items()}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
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


def _load_model(path: Path, model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    own = _unaliased(model.state_dict())
    if own.keys() != tensors.keys() or any(own[k].shape != t.shape for k, t in tensors.items()):
        raise RunError(f"{path} holds another model: its tensors differ in name or shape")
    model.load_state_dict(tensors, strict=False)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    from safetensors.torch import save

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return _write(path, save(plain, metadata={"format": "pt"}))


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        document = json.loads((path / _STATE).read_bytes())
        if {"state", "optimizer", "files"} <= document.keys():
            return document
    except (OSError, ValueError, AttributeError):
        pass
    raise _damaged(path, _STATE)


def _read_tensors(path: Path, name: str, expected: dict[str, Any]) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        data = (path / name).read_bytes()
    except OSError:
        raise _damaged(path, name) from None
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise _damaged(path, name)
    return load(data)


def _damaged(path: Path, name: str) -> RunError:
    return RunError(
        f"the checkpoint {path} is damaged ({name} is missing or altered): delete that folder and "
        "resume from the one before"
    )
