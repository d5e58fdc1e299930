"""A GRPOTrainer small enough for tests: a random Qwen2 over characters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ALPHABET = "0123456789+=abc"


def make_model(seed: int = 0, dropout: float = 0.0) -> tuple[Any, Any]:
    """(model, tokenizer): two layers of width 32, weights drawn from `seed`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from entropy_lab.train.tokenizer import character_tokenizer

    tokenizer = character_tokenizer(ALPHABET)
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attention_dropout=dropout,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(shape)
    torch.set_rng_state(state)
    return model, tokenizer


def share_of_a(completions: Sequence[str], **_: Any) -> list[float]:
    return [text.count("a") / max(1, len(text)) for text in completions]


PROMPTS = ["1+1=", "12+3=", "7+", "b", "c=1", "20+4=", "ab", "3+3="]


def make_trainer(
    folder: Path, *, cls: Any = None, dropout: float = 0.0, eval_data: bool = False, **settings: Any
) -> Any:
    """A trainer that has not begun; settings are GRPOConfig's."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = make_model(dropout=dropout)
    if settings.get("beta"):  # the reference model is read from where the policy came from
        model.save_pretrained(folder / "start")
        model = type(model).from_pretrained(folder / "start")
    plain = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return (cls or GRPOTrainer)(
        model=model,
        reward_funcs=share_of_a,
        args=GRPOConfig(output_dir=str(folder), **{**plain, **settings}),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}) if eval_data else None,
        processing_class=tokenizer,
    )
