"""Random causal LMs of several architectures, small enough to be made and saved on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from entropy_lab.train.randomness import seeded
from entropy_lab.train.tasks import make_task
from entropy_lab.train.tokenizer import character_tokenizer

ROPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {**ROPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Windows of 4 tokens, so that prompts and responses of the tests are longer than they are.
DENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", ROPE),
    "mistral": ("Mistral", {**ROPE, "sliding_window": 4}),
    "qwen2": ("Qwen2", {**ROPE, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**ROPE, "head_dim": 16}),
    "phi3": ("Phi3", ROPE),
    "gemma2": (
        "Gemma2",
        {**ROPE, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 2},
    ),
    "gemma3_text": (
        "Gemma3",
        {**ROPE, "head_dim": 8, "sliding_window": 4,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt2": (
        "GPT2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3},
    ),
    "opt": (
        "OPT",
        {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    ),
    "bloom": (  # no position_ids
        "Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    ),
}  # fmt: skip
SPARSE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {**ROPE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 16}),
}
ARCHITECTURES = {**DENSE, **SPARSE}


def tokenizer_of_task() -> Any:
    return character_tokenizer(make_task("arithmetic", digits=1).alphabet)


def make_model(name: str, **changes: Any) -> Any:
    """A random model of an architecture; `changes` go into its config."""
    kind, settings = ARCHITECTURES[name]
    tokenizer = tokenizer_of_task()
    config_class = getattr(transformers, kind + ("TextConfig" if kind == "Gemma3" else "Config"))
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    config = config_class(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=1, pad_token_id=0,
        **{**settings, **changes},
    )  # fmt: skip
    with seeded(4):
        return getattr(transformers, kind + head)(config).eval()


def save_model(name: str, folder: Path, **changes: Any) -> Path:
    """The same in a folder, with the tokenizer of the arithmetic task."""
    make_model(name, **changes).save_pretrained(folder)
    tokenizer_of_task().save_pretrained(folder)
    return folder


SHORT = [
    "run.threads=1", "task.digits=1", "rollout.prompts=4", "rollout.group_size=4",
    "rollout.max_tokens=8", "train.rollouts=1", "train.micro_batch=4", "probe.fixed_responses=4",
    "probe.deep_every=1", "probe.floor_every=1", "optimizer.lr=1e-3", "optimizer.clip_norm=0.5",
    "optimizer.weight_decay=0.01", "model.device=cpu",
]  # fmt: skip


def any_reward(monkeypatch: Any) -> None:
    """Reward responses by their text alone: a random model solves nothing, and must not need to."""
    task = type(make_task("arithmetic"))
    monkeypatch.setattr(task, "reward", lambda self, text, problem: float(sum(map(ord, text)) % 2))


def roughened(model: Any, by: float = 0.2) -> Any:
    """The model in eval mode with logits that are far from flat."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * by)
    return model.eval()


def rough_qwen2(by: float, **shape: Any) -> Any:
    """A random Qwen2 whose logits are far from flat: the same one in every test."""
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    with seeded(3):
        model = transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(num_hidden_layers=2, **shape, **ids)
        )
        return roughened(model, by)
