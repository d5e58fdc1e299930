"""Checkpoints: model, optimizer and trainer state in safetensors and JSON; complete or absent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from entropy_lab.errors import RunError
from entropy_lab.probe.world import ALONE, Alone
from entropy_lab.train.optimizer_state import restore_optimizer, split_optimizer
from entropy_lab.train.tensor_files import (
    Sum,
    file_digest,
    read_tensors,
    seal,
    shards,
    sync_folder,
    write_chunks,
    write_tensors,
)

Kind = Literal["checkpoints", "replay"]
_STATE = "state.json"
_MODEL = "model"
_INDEX = "model.safetensors.index.json"
_OPTIMIZER = "optimizer.safetensors"
_EXTRA = "extra.safetensors"
SHARD_BYTES = 5 * 10**9  # a model file is at most this large


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
    keep: int = 0,
    kind: Kind = "checkpoints",
    *,
    tokenizer: Any = None,
    score: float | None = None,
    world: Alone = ALONE,
) -> Path:
    """Write KIND/step-NNNNNN under the run; a name appears only when all of it is on disk.

    state: anything JSON can hold; tensors: extra named tensors, such as random states. tokenizer:
    with it, the configuration and it are written beside the weights, so that the folder is a model
    for transformers' `from_pretrained`. keep: how many of the newest stay (0: all), and the one of
    the highest `score` with them. Raises RunError where the disk refuses.

    Of several processes all have to come here, with the whole `model` filled; rank 0 writes what
    one process would have written, and the others wait for it. Sharded moments are put together
    one tensor at a time. So a checkpoint knows nothing of the number of ranks, loads on any, is a
    model for `from_pretrained`, and is safetensors throughout: torch.distributed.checkpoint keeps
    the layout of its files in a pickle, which is never read here from a run directory.
    """
    folder = Path(run_dir) / kind
    final = folder / f"step-{step:06d}"
    partial = folder / f"{final.name}.tmp"
    optimizer_tensors, optimizer_json = split_optimizer(optimizer, keep=world.rank == 0)
    if world.rank:
        world.told(None)
        return final
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums = _write_model(partial, model, tokenizer)
        sums[_OPTIMIZER] = write_tensors(partial / _OPTIMIZER, optimizer_tensors)
        if tensors:
            sums[_EXTRA] = write_tensors(partial / _EXTRA, tensors)
        document = {"step": step, "score": score, "state": state, "optimizer": optimizer_json}
        text = json.dumps(document | {"files": sums}, indent=1)
        write_chunks(partial / _STATE, [text.encode()])
        sync_folder(partial)
        _remove(final)
        os.replace(partial, final)
        sync_folder(folder)
    except OSError as e:
        raise RunError(f"cannot write the checkpoint {final}: {e.strerror or e}") from e
    if keep:
        _prune(folder, keep)
    world.told(None)
    return final


def _write_model(folder: Path, model: torch.nn.Module, tokenizer: Any) -> dict[str, Sum]:
    """The weights as transformers names them, tied ones once, and what else makes it a model."""
    if tokenizer is not None:
        config: Any = model.config
        config.save_pretrained(folder)
        if (generation := getattr(model, "generation_config", None)) is not None:
            # Not save_pretrained: that refuses settings which some published models come with.
            generation.to_json_file(folder / "generation_config.json")
        tokenizer.save_pretrained(folder)
    sums = {path.name: seal(path) for path in sorted(folder.iterdir()) if path.is_file()}
    parts = shards(_unaliased(model.state_dict()), SHARD_BYTES)
    if len(parts) == 1:
        name = f"{_MODEL}.safetensors"
        return sums | {name: write_tensors(folder / name, parts[0])}
    where: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = f"{_MODEL}-{number:05d}-of-{len(parts):05d}.safetensors"
        sums[name] = write_tensors(folder / name, part)
        where |= dict.fromkeys(part, name)
    total = sum(t.numel() * t.element_size() for part in parts for t in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    return sums | {_INDEX: write_chunks(folder / _INDEX, [json.dumps(index, indent=1).encode()])}


def complete_checkpoints(run_dir: str | Path, kind: Kind = "checkpoints") -> list[Path]:
    """The complete checkpoints of a run, by step; unfinished ones are passed over."""
    return [path for _, path in _checkpoints(Path(run_dir) / kind) if _complete(path)]


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    return next(reversed(complete_checkpoints(run_dir)), None)


def best_checkpoint(run_dir: str | Path) -> tuple[Path, float] | None:
    """The complete checkpoint of the highest score, with it; of equal ones the earliest."""
    scored = [(path, _score(path)) for path in complete_checkpoints(run_dir)]
    found = [(path, score) for path, score in scored if score is not None]
    return max(found, key=lambda pair: pair[1], default=None)


def cut_checkpoints(run_dir: str | Path, step: int) -> list[Path]:
    """Delete checkpoints and replay points of later steps, and what was never finished.

    A run that goes on from `step` makes them again. Returns what was deleted. Raises RunError
    where the disk refuses.
    """
    gone = []
    for folder in (Path(run_dir) / "checkpoints", Path(run_dir) / "replay"):
        later = [path for number, path in _checkpoints(folder) if number > step]
        try:
            for path in later:
                _remove(path)
            unfinished = sorted(folder.glob("step-*.tmp"))
            for path in unfinished:
                shutil.rmtree(path)
        except OSError as e:
            raise RunError(f"cannot clear {folder}: {e.strerror or e}") from e
        gone += later + unfinished
    return gone


def load_checkpoint(
    path: str | Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore model and optimizer in place, bit for bit; returns (state, tensors) as saved.

    Raises RunError naming the checkpoint where it is damaged or belongs to another model.
    """
    path = Path(path)
    document = _read_state(path)
    for name, expected in document["files"].items():
        _check(path, name, expected)
    names = [n for n in document["files"] if n.endswith(".safetensors")]
    parts = [read_tensors(path / n) for n in names if n.startswith(_MODEL)]
    _load_model(path, model, {k: t for part in parts for k, t in part.items()})
    if optimizer is not None:
        load_optimizer(path, optimizer)
    return document["state"], _copies(read_tensors(path / _EXTRA)) if _EXTRA in names else {}


def load_optimizer(path: str | Path, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimizer of a checkpoint that `load_checkpoint` has found whole."""
    path = Path(path)
    tensors = read_tensors(path / _OPTIMIZER)
    restore_optimizer(path, optimizer, tensors, _read_state(path)["optimizer"])


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


def _score(path: Path) -> float | None:
    value = json.loads((path / _STATE).read_bytes()).get("score")
    return float(value) if isinstance(value, int | float) else None


def _prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` and the best one."""
    best = best_checkpoint(folder.parent) if folder.name == "checkpoints" else None
    for _, old in _checkpoints(folder)[:-keep]:
        if best is None or old != best[0]:
            _remove(old)


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


def _load_model(path: Path, model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    own = _unaliased(model.state_dict())
    if own.keys() != tensors.keys() or any(own[k].shape != t.shape for k, t in tensors.items()):
        raise RunError(f"{path} holds another model: its tensors differ in name or shape")
    model.load_state_dict(tensors, strict=False)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In memory of their own, which the file may leave."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        document = json.loads((path / _STATE).read_bytes())
        if {"state", "optimizer", "files"} <= document.keys():
            return document
    except (OSError, ValueError, AttributeError):
        pass
    raise _damaged(path, _STATE)


def _check(path: Path, name: str, expected: Sum) -> None:
    """Raise RunError unless the file is, byte for byte, the one that was saved."""
    try:
        if file_digest(path / name) == expected["sha256"]:
            return
    except OSError:
        pass
    raise _damaged(path, name)


def _damaged(path: Path, name: str) -> RunError:
    return RunError(
        f"the checkpoint {path} is damaged ({name} is missing or altered): delete that folder and "
        "resume from the one before"
    )
