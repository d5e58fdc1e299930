"""A model folder for trying real data out: a tiny Qwen2 that knows nothing, and its tokenizer.

    python -m experiments.tiny_model --text DAPO-Math-17k.parquet --out models/tiny

Trains a byte-level BPE tokenizer on the prompts of a data file, gives it a chat template, and saves
it with a Qwen2 of random weights: what `model.path` takes. Any text can be encoded and decoded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from entropy_lab.train.randomness import seeded
from entropy_lab.train.tasks import prompt_text
from entropy_lab.train.tasks.data import Reading, load_data

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE of at most `vocabulary` tokens learned from `texts`; ends at <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        chat_template=TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def random_qwen2(tokenizer: Any, args: argparse.Namespace) -> Any:
    """A Qwen2ForCausalLM of the given sizes with weights drawn from args.seed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=args.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(args.seed):
        return Qwen2ForCausalLM(shape)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A tiny random Qwen2 and a tokenizer for it")
    parser.add_argument("--text", required=True, help="data file whose prompts the BPE learns")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--positions", type=int, default=8192, help="longest prompt and response")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    problems = load_data(args.text, Reading(bad_rows="skip"), lambda _: []).problems
    tokenizer = byte_tokenizer((prompt_text(p.prompt) for p in problems), args.vocabulary)
    model = random_qwen2(tokenizer, args)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    size = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {size:,} parameters, {len(tokenizer):,} tokens, {len(problems):,} prompts")


if __name__ == "__main__":
    main()
