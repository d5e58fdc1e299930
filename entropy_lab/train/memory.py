"""How much memory a run will need, part by part, before it starts; from the model's shape alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from entropy_lab.train.config import Config
from entropy_lab.train.policy import TILED_ABOVE

ALL = frozenset({"rollout", "update", "probe"})
STEP = frozenset({"update", "probe"})  # the probe measures while the gradient is still there


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; parameters counts tied ones once, kv is key-value heads x their width.

    frozen: those of the parameters that are not trained; adapters: numbers in adapters beside them.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv: int
    vocab: int
    frozen: int = 0
    adapters: int = 0


class Part(NamedTuple):
    """bytes of one thing, and in which phases of a rollout it is there."""

    what: str
    bytes: float
    phases: frozenset[str]


def shape_of(model: torch.nn.Module) -> Shape:
    """The sizes of a model of transformers, which may be on the meta device, without any weights.

    What is frozen and what an adapter is as `choose_trainable` left it.
    Sizes that its configuration does not name count as 0: the estimate is then too low.
    """
    whole: Any = model.config
    config = whole.get_text_config()

    def size(name: str, otherwise: int = 0) -> int:
        return int(getattr(config, name, None) or otherwise)

    heads = size("num_attention_heads", 1)
    width = size("head_dim", size("hidden_size") // heads)
    named = list(model.named_parameters())
    adapters = sum(p.numel() for name, p in named if ".lora_" in name)
    return Shape(
        parameters=sum(p.numel() for _, p in named) - adapters,
        layers=size("num_hidden_layers"),
        hidden=size("hidden_size"),
        intermediate=size("intermediate_size"),
        kv=width * size("num_key_value_heads", heads),
        vocab=size("vocab_size"),
        frozen=sum(p.numel() for _, p in named if not p.requires_grad),
        adapters=adapters,
    )


def memory_parts(config: Config, shape: Shape, prompt_tokens: int) -> list[Part]:
    """The estimate in bytes for prompts of `prompt_tokens`, all responses at full length.

    Weights, and gradients and optimizer state of what is trained, are exact; logits are one
    micro-batch's (B, T+1, V) and their gradient. Activations are rough: what the layers of
    Qwen2 and Llama keep for the backward pass, 8 hidden + 2 kv + 4 intermediate numbers a token and
    layer, of which norms and residuals stay float32. Left out: the allocator's own loss, buffers
    of kernels, and whatever else lives on the device.
    """
    m, o, p = config.model, config.optimizer, config.probe
    own = _width(m.dtype)
    low = own if m.autocast == "none" else _width(m.autocast)
    # Adapters are float32 whatever the weights are; autocast keeps casts of trained weights alone.
    weights = shape.parameters * own + 4 * shape.adapters
    trained = weights - shape.frozen * own
    states = {"adamw": 2, "sgd": 1 if o.beta1 else 0}[o.name]
    rows, tokens = micro_size(config, prompt_tokens)
    logits = rows * (config.rollout.max_tokens + 1) * shape.vocab * low
    tiled = config.train.tiled_head
    if tiled is True or (tiled == "auto" and 4 * logits > low * TILED_ABOVE):
        logits = min(logits, TILED_ABOVE)
    layer = tokens * (4 * 8 * shape.hidden + low * (2 * shape.kv + 4 * shape.intermediate))
    kept = layer * shape.layers
    if m.gradient_checkpointing:
        kept = layer + 4 * tokens * shape.hidden * shape.layers
    parts = [
        Part(f"weights ({shape.parameters / 1e6:,.1f} M)", weights, ALL),
        Part(f"optimizer ({o.name})", states * trained, ALL),
        Part("gradients", trained, STEP),
        Part(f"weights in {m.autocast}", trained // own * low if low < own else 0, STEP),
        Part("activations (rough)", kept, frozenset({"update"})),
        Part("logits and their gradient", 2 * logits, frozenset({"update"})),
        Part("logits of a probe pass", logits if p.enabled else 0, frozenset({"probe"})),
        Part("weights in float32", _float32_copy(config, shape, own), frozenset({"probe"})),
        Part("deep step (theta, path)", _deep(config, trained), frozenset({"probe"})),
        _cache(config, shape, prompt_tokens),
    ]
    return [part for part in parts if part.bytes]


def micro_size(config: Config, prompt_tokens: int) -> tuple[int, int]:
    """(responses, tokens) of one micro-batch: train.micro_batch rows, or a budget of tokens."""
    train, rollout = config.train, config.rollout
    per_minibatch = rollout.prompts * rollout.group_size // train.minibatches
    longest = prompt_tokens + rollout.max_tokens
    budget = train.micro_tokens
    rows = max(1, budget // longest) if budget else train.micro_batch
    rows = min(rows, per_minibatch)
    return rows, rows * longest


def peak(parts: list[Part]) -> tuple[str, float]:
    """The phase that needs most, and its bytes."""
    sums = {phase: sum(p.bytes for p in parts if phase in p.phases) for phase in sorted(ALL)}
    return max(sums.items(), key=lambda pair: pair[1])


def _float32_copy(config: Config, shape: Shape, own: int) -> int:
    """A pass in float32 beside weights of half the width."""
    asked = config.probe.enabled and config.probe.dtype in ("auto", "float32")
    return 4 * shape.parameters if asked and own < 4 else 0


def _deep(config: Config, trained: float) -> float:
    """theta before the step (unless kept on the host), its change, and one point between."""
    if not (config.probe.enabled and config.probe.deep_every):
        return 0
    return trained * (2 if config.probe.snapshots == "cpu" else 3)


def _cache(config: Config, shape: Shape, prompt_tokens: int) -> Part:
    """Keys and values of all responses that are generated together."""
    rollout, e = config.rollout, config.eval
    if rollout.engine != "hf":
        return Part("", 0, frozenset())  # another engine reserves its own share of the device
    rows = rollout.prompts * rollout.group_size
    length = prompt_tokens + max(rollout.max_tokens, e.max_tokens if e.every else 0)
    own = _width(config.model.dtype)
    size = 2 * shape.layers * shape.kv * rows * length * own
    return Part(f"KV cache ({rows:,} responses)", size, frozenset({"rollout"}))


def _width(dtype: str) -> int:
    """Bytes of a number of a dtype by its name."""
    return getattr(torch, dtype).itemsize
