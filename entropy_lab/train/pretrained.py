"""Causal LMs of `transformers`, as the trainer reads them: checked, placed, ready to be sampled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from entropy_lab.errors import ConfigError
from entropy_lab.train.prompts import turn_end
from entropy_lab.train.settings import ModelConfig
from entropy_lab.train.trainable import choose_trainable

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def open_pretrained(source: str, settings: ModelConfig) -> tuple[Any, Any]:
    """(model, tokenizer) of a local folder or a hub name, in eval mode, as `settings` ask for it.

    A hub name goes through the cache of `transformers` and its offline switch (HF_HUB_OFFLINE).
    Code that a model brings along is never run. Raises ConfigError with one line for a source that
    holds no whole causal LM, and for settings that the model or this machine does not allow.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = _is_local(source)
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    with _told(source, local), no_bars():
        attention = _attention(source, settings, options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=attention,
            output_loading_info=True,
            **options,
        )
    model, found = loaded
    if found["missing_keys"]:
        raise ConfigError(
            f"model.path = {source!r} lacks weights of {type(model).__name__}, e.g. "
            f"{sorted(found['missing_keys'])[0]}: give the whole causal LM"
        )
    if model._is_stateful:
        raise ConfigError(
            f"model.path = {source!r}: {type(model).__name__} keeps a recurrent state, which would "
            "take in padding, so its scores would depend on the batch: give an attention model"
        )
    return prepared(model, tokenizer, settings), tokenizer


def outline(source: str, settings: ModelConfig) -> tuple[Any, Any]:
    """(model on the meta device, which holds no numbers, tokenizer): no weights are read.

    Raises ConfigError as `open_pretrained` does, and for a local folder without weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    local = _is_local(source)
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    weights = [*Path(source).glob("*.safetensors"), *Path(source).glob("*.bin")]
    if local and not weights:
        raise ConfigError(
            f"model.path = {source!r} holds no weights (*.safetensors): download all of it"
        )
    with _told(source, local), no_bars():
        _attention(source, settings, options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, **options))
    return model, tokenizer


def prepared(model: Any, tokenizer: Any, settings: ModelConfig) -> Any:
    """The model with its dtype, device and trainable parameters, in eval mode, and padding and
    ends that sampling can rely on; changed in place."""
    device = device_of(settings.device)
    for parameter in model.parameters():  # not the buffers: rotary angles stay in float32
        data = parameter.data.to(getattr(torch, settings.dtype))
        # Weights mapped from a file begin anywhere; a CPU multiplies aligned ones faster.
        parameter.data = data.clone() if data.data_ptr() % 64 else data
    if settings.attention not in ("auto", model.config._attn_implementation):
        model.set_attn_implementation(settings.attention)
    _set_ends(model, tokenizer, settings.path)
    choose_trainable(model, settings)
    model.eval().to(device)
    if settings.gradient_checkpointing:
        _recompute_layers(model)
    return model


def device_of(name: str) -> torch.device:
    """The device of model.device; ConfigError for "cuda" where torch sees none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "model.device = 'cuda', but torch sees no CUDA device: set model.device=cpu, or auto "
            "for CUDA where there is one"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _is_local(source: str) -> bool:
    """Whether it names a folder; ConfigError where the folder holds no model, or is none."""
    if (Path(source) / "config.json").is_file():
        return True
    if Path(source).exists() or not _HUB_NAME.fullmatch(source):
        raise ConfigError(
            f"model.path = {source!r} holds no model (config.json is missing): give a local "
            "folder, the name of a model on the hub, or leave it empty for the model made here"
        )
    return False


@contextmanager
def _told(source: str, local: bool) -> Iterator[None]:
    """What `transformers` says about a source that it cannot read, as one line."""
    from safetensors import SafetensorError

    kind = "" if local else " as a local folder or a hub name"
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as e:
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        if "trust_remote_code" in str(e):
            reason = "it brings code of its own, which is never run here"
        raise ConfigError(f"model.path = {source!r} cannot be read{kind}: {reason}") from None


def _attention(source: str, settings: ModelConfig, options: dict[str, Any]) -> str | None:
    """The name to ask `transformers` for; None leaves the choice to it.

    Its fused kernels leave soft-capping of the attention scores out without a word.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, **options).get_text_config()
    cap, wanted = getattr(config, "attn_logit_softcapping", None), settings.attention
    if wanted == "flash_attention_2" and device_of(settings.device).type != "cuda":
        raise ConfigError("model.attention = 'flash_attention_2' needs a CUDA device: set sdpa")
    if cap is not None and wanted == "sdpa":
        raise ConfigError(
            f"model.attention = 'sdpa' would leave out this model's soft-capping of attention "
            f"scores (at {cap}): set auto or eager"
        )
    if wanted == "auto":
        return "eager" if cap is not None else None
    return wanted


def _set_ends(model: Any, tokenizer: Any, source: str) -> None:
    """End at any EOS that model, tokenizer or chat template know; pad with one of them at need.

    Padding is masked by position everywhere, so its token needs no meaning of its own, and the
    vocabulary stays as it is. Where a response holds it, it is a token like others: its embedding
    gets the whole gradient, which `padding_idx` would drop.
    """
    known = model.generation_config.eos_token_id
    ends = [known] if isinstance(known, int) else list(known or [])
    ends += [i for i in (tokenizer.eos_token_id, turn_end(tokenizer)) if i is not None]
    if not ends:
        raise ConfigError(
            f"model.path = {source!r} names no end-of-sequence token, so no response could end: "
            "set eos_token in its tokenizer_config.json"
        )
    model.generation_config.eos_token_id = list(dict.fromkeys(ends))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.get_input_embeddings().padding_idx = None


def _recompute_layers(model: Any) -> None:
    """Gradient checkpointing of every layer, in a model that stays in eval mode.

    `transformers` recomputes layers that are in training mode, so that flag alone is set, on the
    layers and not on what is inside them; their own dropout, which it would turn on, is set to 0.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    from entropy_lab.probe.scorer import DROPOUT_ATTRIBUTES

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not (model.supports_gradient_checkpointing and layers):
        raise ConfigError(
            f"model.gradient_checkpointing: {type(model).__name__} does not support it; set false"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
        for name in DROPOUT_ATTRIBUTES:
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers draws a bar per file; a 3 MB model needs none."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
