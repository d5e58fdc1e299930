"""What `entropy-lab eval` is pointed at: a run, one of its checkpoints, or a model folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.record import open_run
from entropy_lab.train.checkpoint import latest_checkpoint, load_checkpoint
from entropy_lab.train.config import Config, config_from_dict
from entropy_lab.train.launch import is_ours, restored
from entropy_lab.train.model import load_model
from entropy_lab.train.rescore import skeleton
from entropy_lab.train.settings import ModelConfig, RolloutConfig, TrainConfig

# What a model folder is evaluated with, as no run says what fits: 64 responses drawn at a time.
_ROLLOUT = RolloutConfig(prompts=32, group_size=2, max_tokens=1024)
_MICRO_BATCH = 8


@dataclass(frozen=True)
class Target:
    """config: the run's settings, or ours around a model folder; folder: where the weights are;
    step: optimizer steps they took; out: where its evaluations go unless told otherwise."""

    config: Config
    folder: Path
    step: int
    out: Path
    is_run: bool

    @property
    def identity(self) -> str:
        """A hash of the names, sizes and times of the files of the weights."""
        files = sorted(p for p in self.folder.iterdir() if p.is_file())
        facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer) with these weights."""
        if self.config.run.threads:
            torch.set_num_threads(self.config.run.threads)
        if not self.is_run:
            return load_model(self.config)
        model, tokenizer = skeleton(self.config)
        load_checkpoint(self.folder, model)
        return model.eval(), tokenizer


def find_target(path: Path) -> Target:
    """The target at `path`: of a run its newest complete checkpoint.

    Raises RunError for a run without one or of another trainer, ConfigError for anything else.
    """
    path = path.resolve() if path.exists() else path  # its parents decide what it is
    if path.parent.name == "checkpoints" and (path.parents[1] / "run.json").is_file():
        if not path.is_dir():
            raise RunError(f"there is no checkpoint {path}: see what {path.parent} holds")
        return _of_run(path.parents[1], path)
    if (path / "run.json").is_file():
        newest = latest_checkpoint(path)
        if newest is None:
            raise RunError(f"{path} has no complete checkpoint to evaluate")
        return _of_run(path, newest)
    if (path / "config.json").is_file():
        config = Config(
            model=ModelConfig(path=str(path)),
            rollout=_ROLLOUT,
            train=TrainConfig(micro_batch=_MICRO_BATCH),
        )
        return Target(config, path, 0, Path("evals") / path.resolve().name, False)
    raise ConfigError(
        f"{path} is neither a run (run.json), nor a checkpoint of one (RUN/checkpoints/step-...), "
        "nor a model folder (config.json)"
    )


def _of_run(run: Path, checkpoint: Path) -> Target:
    settings = restored(open_run(run).info.get("config") or {})
    if not is_ours(settings):
        raise RunError(f"{run} is not a run of the bundled trainer: give a model folder instead")
    config = config_from_dict(settings, str(run / "run.json"))
    step = checkpoint.name.removeprefix("step-")
    if not step.isdecimal():
        raise RunError(f"{checkpoint} is no complete checkpoint")
    return Target(config, checkpoint, int(step), run / "eval", True)
