"""vocab.json: whole, any text, and what the trainer and the probe write into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from entropy_lab import Probe, token_stats
from entropy_lab.errors import RunError
from entropy_lab.record import read_vocab, write_vocab
from entropy_lab.train.token_texts import token_texts
from entropy_lab.train.tokenizer import character_tokenizer

HOSTILE = ["</script>", "\x00", "\ud800", "‮", '"', "\\u0041", None, "x" * 100_000, "\u2028"]


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_vocab(tmp_path) == []
    write_vocab(tmp_path, HOSTILE)
    assert read_vocab(tmp_path) == HOSTILE
    (tmp_path / "vocab.json").read_bytes().decode("ascii")
    assert [p.name for p in tmp_path.iterdir()] == ["vocab.json"]


def test_what_is_no_list_of_texts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a list of str or None by token id"):
        write_vocab(tmp_path, [b"x"])  # type: ignore[list-item]
    path = tmp_path / "vocab.json"
    for text, said in (("{", "is damaged"), ("{}", "is not a list"), ("[1]", "is not a list")):
        path.write_text(text)
        with pytest.raises(RunError, match=said) as error:
            read_vocab(tmp_path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_character_tokenizer_gives_its_alphabet() -> None:
    assert token_texts(character_tokenizer("01 +")) == ["<pad>", "<eos>", "0", "1", " ", "+"]


def test_words_keep_the_blank_before_them() -> None:
    """The texts of the tokens of a text, joined, are the text: decoding one by one is not."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({"▁a": 0, "▁cat": 1, "s": 2, "<eos>": 3}))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    backend.decoder = decoders.Metaspace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    assert tokenizer.decode([1]) == "cat"
    assert token_texts(tokenizer) == [" a", " cat", "s", "<eos>"]


def test_the_probe_writes_what_it_is_given(tmp_path: Path) -> None:
    model = torch.nn.Embedding(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def score(ids: torch.Tensor):
        return token_stats(model(ids)[:, :-1], ids[:, 1:], temperature=1.0)

    Probe(model, optimizer, tmp_path / "with", score, vocab=["a", None, "c"]).close()
    Probe(model, optimizer, tmp_path / "without", score).close()
    assert json.loads((tmp_path / "with" / "vocab.json").read_text()) == ["a", None, "c"]
    assert not (tmp_path / "without" / "vocab.json").exists()
