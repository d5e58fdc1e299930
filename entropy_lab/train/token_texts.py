"""What each token of a vocabulary says, as it stands within a text."""

from __future__ import annotations

from typing import Any

_WORD_START = "\u2581"  # SentencePiece's mark; decoding a lone token drops the blank it stands for


def token_texts(tokenizer: Any) -> list[str]:
    """The text of each id 0 .. len(tokenizer) - 1, special tokens by name, blanks kept.

    A token that is part of a character alone decodes to the replacement character U+FFFD.
    """
    ids = range(len(tokenizer))
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return [
        f" {text}" if _lost_blank(piece, text) else text
        for piece, text in zip(pieces, texts, strict=True)
    ]


def _lost_blank(piece: str | None, text: str) -> bool:
    return bool(piece) and str(piece).startswith(_WORD_START) and not text.startswith(" ")
