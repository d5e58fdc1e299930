"""The policy: a small Qwen2 made and warmed up here and kept in a cache, or one that exists."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from entropy_lab.errors import RunError
from entropy_lab.train.config import Config
from entropy_lab.train.pretrained import no_bars, open_pretrained, prepared
from entropy_lab.train.randomness import seeded
from entropy_lab.train.tasks import make_task, worked_task
from entropy_lab.train.tokenizer import character_tokenizer
from entropy_lab.train.warmup import OnIteration, warm_up

_RECIPE = 1  # raise it when the same settings come to mean other weights
_SEAL = "entropy_lab.json"
# Settings that do not change the warmed-up weights.
_NOT_WARMED = (
    "path", "dtype", "autocast", "attention", "device", "gradient_checkpointing", "trainable",
    "lora_rank", "lora_alpha", "lora_targets",
)  # fmt: skip


def load_model(config: Config, progress: OnIteration | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) in eval mode: model.path, or the one made here.

    The latter is warmed up on first use, in float32 on the CPU, and read from the cache afterwards.
    Raises ConfigError as `open_pretrained` does, RunError where the cache cannot be written.
    """
    if config.model.path:
        return open_pretrained(config.model.path, config.model)
    folder = cached_folder(config)
    if not _intact(folder):
        _make(config, folder, progress)
    return open_pretrained(str(folder), config.model)


def skeleton(config: Config) -> tuple[Any, Any]:
    """The model to load weights into; the one made here needs no warm-up for that."""
    if config.model.path:
        return load_model(config)
    task = worked_task(make_task(config.task.name, **config.task.params))
    tokenizer = character_tokenizer(task.alphabet)
    return prepared(new_model(config, tokenizer), tokenizer, config.model), tokenizer


def new_model(config: Config, tokenizer: Any) -> Any:
    """An untrained Qwen2ForCausalLM of the settings' sizes, its weights drawn from model.seed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = config.model
    shape = Qwen2Config(
        vocab_size=max(len(tokenizer), sizes.vocab),
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(sizes.seed):
        return Qwen2ForCausalLM(shape)


def model_hash(config: Config) -> str:
    """What decides the warmed-up weights: settings, seed, versions, CPU and thread count."""
    import transformers

    task: Any = make_task(config.task.name, **config.task.params)
    parts = {
        "recipe": _RECIPE,
        "task": {"name": task.name, **asdict(task)},
        "model": {k: v for k, v in asdict(config.model).items() if k not in _NOT_WARMED},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        # Sums are split over threads, so their number shows in the last bits.
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def cached_folder(config: Config) -> Path:
    """Where the model of these settings is kept: <user cache>/entropy-lab/models/<hash>."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "entropy-lab" / "models" / model_hash(config)


def _make(config: Config, folder: Path, progress: OnIteration | None) -> None:
    task = worked_task(make_task(config.task.name, **config.task.params))
    tokenizer = character_tokenizer(task.alphabet)
    model = new_model(config, tokenizer)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(
            tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent)
        )
    except OSError as e:
        raise _unwritable(folder, e) from None
    try:
        loss = warm_up(model, tokenizer, task, config.model, progress)
        with no_bars():
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
        sums = {p.name: _digest(p) for p in sorted(building.iterdir())}
        (building / _SEAL).write_text(json.dumps({"loss": loss, "files": sums}, indent=1))
        _publish(building, folder)
    except OSError as e:
        raise _unwritable(folder, e) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(building: Path, folder: Path) -> None:
    """Rename into place; another process may have been first, or left a damaged folder."""
    try:
        os.rename(building, folder)
    except OSError:
        if _intact(folder):
            return
        broken = folder.with_name(f"{building.name}.broken.tmp")
        os.rename(folder, broken)
        shutil.rmtree(broken, ignore_errors=True)
        os.rename(building, folder)


def _intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / _SEAL).read_bytes())["files"]
        return all(_digest(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _unwritable(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write the model cache {folder.parent}: {error.strerror or error}; "
        "set XDG_CACHE_HOME to a folder with room"
    )
