"""The policy: a small Qwen2 made and warmed up here and kept in a cache, or a local folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.train.config import Config
from entropy_lab.train.randomness import seeded
from entropy_lab.train.tasks import Task, make_task
from entropy_lab.train.tokenizer import character_tokenizer
from entropy_lab.train.warmup import OnIteration, warm_up

_RECIPE = 1  # raise it when the same settings come to mean other weights
_SEAL = "entropy_lab.json"
_NOT_WARMED = ("path", "autocast")  # settings that do not change the warmed-up weights


def load_model(config: Config, progress: OnIteration | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) in float32 and eval mode: model.path, or the one made here.

    The latter is warmed up on first use and read from the cache afterwards. Raises ConfigError
    for a folder that holds no model, RunError where the cache cannot be written.
    """
    if config.model.path:
        return _open(Path(config.model.path))
    folder = cached_folder(config)
    if not _intact(folder):
        _make(config, folder, progress)
    return _open(folder)


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
    task: Task = make_task(config.task.name, **config.task.params)
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
        with _no_bars():
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


def _open(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.path = {str(folder)!r} holds no model (config.json is missing): give a local "
            "folder, or leave it empty for the model made here"
        )
    try:
        with _no_bars():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
            )
    except (OSError, ValueError, KeyError) as e:
        reason = str(e).strip().splitlines()[0]
        raise ConfigError(f"model.path = {str(folder)!r} cannot be read: {reason}") from None
    return model.eval(), tokenizer


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a bar per file; a 3 MB model needs none."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _unwritable(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write the model cache {folder.parent}: {error.strerror or error}; "
        "set XDG_CACHE_HOME to a folder with room"
    )
