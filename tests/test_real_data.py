"""The integration run on small files, and the model folder that it makes for itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_files import parquet, question, verl_rows
from entropy_lab import load
from entropy_lab.train.config import load_config
from entropy_lab.train.prompts import encode_prompt
from experiments import real_data
from experiments.tiny_model import byte_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer([question(i) for i in range(20)], 300)


@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_any_text_is_encoded_and_decoded(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i < len(tokenizer) <= 300 for i in ids)


def test_the_tokenizer_has_learned_and_knows_chats(tokenizer) -> None:
    assert len(tokenizer.encode(question(7))) < len(question(7)) / 2
    ids = encode_prompt(tokenizer, ({"role": "user", "content": "1+1?"},))
    assert tokenizer.decode(ids) == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id in ids


def test_the_settings_are_those_of_the_integration_run() -> None:
    config = load_config(ROOT / "experiments" / "configs" / "data.toml")
    assert (config.rollout.max_tokens, config.train.rollouts, config.rollout.engine) == (
        512, 3, "hf"
    )  # fmt: skip
    assert len((ROOT / "experiments" / "configs" / "data.toml").read_text().splitlines()) <= 30


def test_three_steps_leave_rows_samples_evaluations_and_a_peak(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "DAPO-Math-17k.parquet", verl_rows(40))
    parquet(tmp_path / "math500.parquet", verl_rows(6, first=50))
    monkeypatch.chdir(ROOT)
    words = ["real_data", "--data", str(tmp_path), "--model", str(tmp_path / "model")]
    words += ["--out", str(tmp_path / "run"), "--set", "rollout.max_tokens=5"]
    monkeypatch.setattr(sys, "argv", words)
    real_data.main()
    said = capfd.readouterr().out
    assert "data: 40 rows, 40 used, 0 overlong, 0 bad" in said
    assert "samples: 48 responses to 12 problems" in said
    run = load(tmp_path / "run")
    tokens = int(run.samples()["length"].sum())
    assert f"rows: {tokens:,} tokens of 3 steps" in said and run.last_step == 2
    assert "evals: 4 rows of ['math500'] after steps [0, 3]" in said
    peak = re.search(r"peak memory of the training process: (\d+\.\d\d) GiB", said)
    assert 0.2 < float(peak[1]) < 4
