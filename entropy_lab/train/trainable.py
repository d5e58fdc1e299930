"""Which parameters of a model are trained: all, those of some names, or adapters of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from entropy_lab.errors import ConfigError
from entropy_lab.train.randomness import seeded
from entropy_lab.train.settings import ModelConfig


def choose_trainable(model: Any, settings: ModelConfig) -> None:
    """Freeze what is not to be trained and add the adapters, in place.

    Names are those of the model without adapters; a tied parameter has all of its names. LoRA
    (arXiv 2106.09685): W x + (alpha / rank) B A x with B = 0 at the start, so that the policy is
    the base model's; A is drawn from model.seed. Adapters of half-precision weights are float32.
    Raises ConfigError for a pattern or target that matches nothing, or where peft is missing.
    """
    if not (settings.trainable or settings.lora_rank):
        return
    named = list(model.named_parameters(remove_duplicate=False))
    chosen = [p for pattern in settings.trainable for p in _matching(named, pattern)]
    if settings.lora_rank:
        _add_adapters(model, settings)  # freezes everything else
    else:
        model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)


def _matching(named: list[tuple[str, nn.Parameter]], pattern: str) -> list[nn.Parameter]:
    found = [p for name, p in named if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(
            f"model.trainable: {pattern!r} matches no parameter: give globs of names such as "
            f"{named[0][0]} or {named[len(named) // 2][0]}"
        )
    return found


def _add_adapters(model: Any, settings: ModelConfig) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model  # type: ignore[import-not-found]
        from peft.tuners.lora.layer import ParamWrapper  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model.lora_rank = {settings.lora_rank} needs {error.name}: install it with pip "
            "install 'entropy-lab[peft]'"
        ) from None
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=settings.lora_targets or _linear_layers(model),
    )
    try:
        with seeded(settings.seed):
            inject_adapter_in_model(lora, model)
    except ValueError as e:
        raise ConfigError(f"model.lora_targets: {str(e).strip().splitlines()[0]}") from None
    for name, parameter in model.named_parameters():
        if ".lora_" in name:  # peft gave it the dtype of the layer
            parameter.data = parameter.data.float()
    if any(isinstance(m, ParamWrapper) for m in model.modules()):
        raise ConfigError(
            "model.lora_targets: peft adapts the experts of this model by exchanging their weights "
            "in each forward pass, which cannot be measured: name attention layers alone, e.g. "
            "['q_proj', 'v_proj']"
        )


def _linear_layers(model: Any) -> list[str]:
    """Names of all linear layers but the head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)
    return [n for n, m in model.named_modules() if isinstance(m, kinds) and m is not head]


@torch.no_grad()
def lost_to_rounding(params: Sequence[nn.Parameter], step: float) -> float:
    """Share of the half-precision weights among `params` (0 without any) that are the same after
    adding or subtracting `step`, which is what AdamW moves a weight by at most, about, at that
    learning rate."""
    low = [p for p in params if p.dtype in (torch.bfloat16, torch.float16)]
    stuck = sum(int(((p + step == p) & (p - step == p)).sum()) for p in low)
    return stuck / sum(p.numel() for p in low) if low else 0.0
