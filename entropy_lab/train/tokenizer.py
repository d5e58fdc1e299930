"""A character-level `transformers` tokenizer for a task's alphabet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<pad>"
EOS = "<eos>"


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token per character: <pad> is 0, <eos> is 1, then the alphabet in its order.

    Encoding adds nothing; decoding joins characters without blanks. Raises ValueError for an
    alphabet with repeats.
    """
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    if len(set(alphabet)) != len(alphabet):
        raise ValueError(f"the alphabet {alphabet!r} repeats a character")
    vocabulary = {symbol: i for i, symbol in enumerate([PAD, EOS, *alphabet])}
    # Text outside the alphabet is an error, not a silent <unk>.
    backend = Tokenizer(WordLevel(vocabulary))
    backend.pre_tokenizer = Split(Regex("."), "isolated")  # type: ignore[assignment]
    # Without Fuse, decoding puts blanks between the characters.
    backend.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
