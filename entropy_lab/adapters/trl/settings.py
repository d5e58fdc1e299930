"""What a run directory says of the trainer: its settings, and its loss as one of our methods."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, is_dataclass
from typing import Any

from entropy_lab.adapters.trl.carrier import Carrier
from entropy_lab.errors import ConfigError
from entropy_lab.interventions import Method, make_method


def loss_method(trainer: Any) -> Method | None:
    """The method whose plan is the trainer's own loss; None where none of ours is.

    Averages are those of loss_type, but for the factor by which TRL's differ from the mean over
    the step's tokens (micro-batches, lengths of other steps).
    """
    args, kind = trainer.args, trainer.loss_type
    clips = {"clip_low": float(trainer.epsilon_low), "clip_high": float(trainer.epsilon_high)}
    dual = {} if args.delta is None else {"dual_clip": float(args.delta)}
    averaged = {"dapo": "token_mean", "bnpo": "token_mean", "grpo": "seq_mean"}.get(kind)
    try:
        if trainer.importance_sampling_level == "sequence":
            known = {"normaliser": averaged, **clips} if averaged else None
            return make_method("gspo", **known) if known else None
        if kind == "cispo":
            return make_method("cispo", clip_high=clips["clip_high"] - 1)
        if kind == "dr_grpo":
            length = int(trainer.max_completion_length)
            return make_method("dr_grpo", constant_length=length, **clips, **dual)
        if averaged is None:
            return None
        if trainer.top_entropy_quantile < 1:
            rho = float(trainer.top_entropy_quantile)
            return make_method("fork_tokens", rho=rho, normaliser=averaged, **clips, **dual)
        return make_method("grpo", normaliser=averaged, **clips, **dual)
    except ConfigError:  # a value that TRL takes and ours does not
        return None


def run_config(trainer: Any, method: Method | None, seed: int) -> dict[str, Any]:
    """The `config` of run.json: the method, and every setting of the trainer under "trl"."""
    told = method or loss_method(trainer)
    name = told.name if told else f"trl_{trainer.loss_type}"
    settings = json.loads(json.dumps(trainer.args.to_dict(), default=str))
    return {
        "run": {"seed": seed},
        "method": {"name": name, **_fields(told)},
        "trl": settings,
    }


def run_facts(trainer: Any, carrier: Carrier | None) -> dict[str, Any]:
    """Further keys of run.json: the method with its settings, versions, ranks, vocabulary."""
    told = carrier.method if carrier else loss_method(trainer)
    scope = {} if carrier is None else {"scope": carrier.scope, "scope_reason": carrier.told}
    if told is None:
        said: dict[str, Any] = {"name": f"trl_{trainer.loss_type}"}
    else:
        said = {"name": told.name, "source": told.source, **_fields(told)}
    text = trainer.model.config.get_text_config()
    return {
        "adapter": {
            "name": "trl",
            "trl": importlib.metadata.version("trl"),
            "transformers": importlib.metadata.version("transformers"),
            "accelerate": importlib.metadata.version("accelerate"),
            "trainer": type(trainer).__name__,
            **scope,
        },
        "method": said,
        "world_size": trainer.accelerator.num_processes,
        "vocab_size": int(text.vocab_size),
    }


def _fields(method: Method | None) -> dict[str, Any]:
    return asdict(method) if is_dataclass(method) else {}
