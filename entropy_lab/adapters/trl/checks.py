"""Can this trainer be watched, and is it what this adapter knows? Errors name what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from pathlib import Path
from typing import Any

from entropy_lab.adapters.trl.score import FORWARD
from entropy_lab.errors import ConfigError, RunError, nearest
from entropy_lab.probe import Probe

LOWEST, BELOW = (1, 9), (2,)
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
_METHODS = {
    FORWARD: ("model", "input_ids", "attention_mask", "logits_to_keep"),
    "_prepare_inputs": (),
    "_generate_and_score_completions": (),
    "_calculate_rewards": (),
    "_compute_loss": (),
    "get_high_entropy_mask": (),
}
_ATTRIBUTES = (
    "accelerator model temperature loss_type importance_sampling_level epsilon_low epsilon_high "
    "num_generations reward_weights top_entropy_quantile entropy_coef _step _metrics _tokenizer"
).split()


def check_trainer(trainer: Any) -> None:
    """Raises ConfigError where the probe cannot be attached, naming why and what works."""
    try:
        GRPOTrainer = importlib.import_module("trl").GRPOTrainer
    except ImportError as error:
        raise ConfigError(
            f"the TRL adapter needs trl ({error}): pip install 'entropy-lab[trl]'"
        ) from None
    if not isinstance(trainer, GRPOTrainer):
        raise ConfigError(
            f"attach watches a GRPOTrainer of trl, got {type(trainer).__name__}: other loops use "
            "entropy_lab.Probe"
        )
    _check_version(importlib.metadata.version("trl"))
    if hasattr(trainer, "_entropy_lab"):
        raise ConfigError("this trainer has a probe already: call close() on it first")
    _check_surface(trainer)
    _check_settings(trainer)


def _check_version(version: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not LOWEST <= numbers < BELOW:
        raise ConfigError(
            f"trl {version} is not one that this adapter knows (>=1.9,<2): install one of those"
        )


def _check_surface(trainer: Any) -> None:
    """The methods that are wrapped and the attributes that are read are there."""
    lacking = [n for n in _METHODS if not callable(getattr(trainer, n, None))]
    lacking += [n for n in _ATTRIBUTES if not hasattr(trainer, n)]
    if lacking:
        raise ConfigError(
            f"{type(trainer).__name__} has no {', '.join(lacking)}: this version of trl, or a "
            "subclass, is not one that the adapter knows (trl>=1.9,<2)"
        )
    for name, wanted in _METHODS.items():
        parameters = list(inspect.signature(getattr(trainer, name)).parameters.values())
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            continue
        names = [p.name for p in parameters]
        if names[: len(wanted)] != list(wanted):
            raise ConfigError(
                f"{type(trainer).__name__}.{name}({', '.join(names)}) does not begin with "
                f"{', '.join(wanted)}: keep the signature of trl's own method"
            )


def _check_settings(trainer: Any) -> None:
    if trainer.loss_type not in LOSS_TYPES:
        raise ConfigError(
            f"loss_type = {trainer.loss_type!r} is not one that this adapter knows: "
            f"{', '.join(LOSS_TYPES)}"
        )
    if getattr(trainer, "use_liger_kernel", False) or getattr(trainer, "use_liger_loss", False):
        raise ConfigError(
            "use_liger_kernel computes the loss without log-probabilities per token, so there is "
            "nothing to watch: set it to False"
        )
    kind = str(getattr(trainer.accelerator, "distributed_type", "NO")).rpartition(".")[2]
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ConfigError(
            f"attach does not know {kind}: it watches a single process and plain data parallel "
            "(DDP); weights that are sharded, or moved inside an engine, are not measured"
        )


def check_options(trainer: Any, run_dir: Any, options: dict[str, Any]) -> None:
    """Raises ConfigError for options that the probe does not have here, RunError for a run_dir
    that holds another run."""
    own = ("config", "start_step", "write_samples", "temperature")
    known = set(inspect.signature(Probe).parameters) - {"model", "optimizer", "run_dir", "score"}
    for name in options:
        if name in own:
            raise ConfigError(f"attach sets {name} itself: leave it out")
        if name not in known:
            raise ConfigError(f"attach has no option {name}; {nearest(name, known - set(own))}")
    if options.get("deep_every") and trainer.accelerator.num_processes > 1:
        raise ConfigError(
            "deep_every is not measured with several processes yet: influence is a sum over all "
            "of them; set it to 0"
        )
    run = Path(run_dir) / "run.json"
    if run.exists() and not list(Path(trainer.args.output_dir).glob("checkpoint-*")):
        raise RunError(
            f"{run_dir} already holds a run, and {trainer.args.output_dir} no checkpoint to "
            "continue it from: choose another directory"
        )
