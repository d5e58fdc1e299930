"""The model made here: its size, its cache, its determinism; and models from a local folder."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.train import model as module
from entropy_lab.train.config import Config, load_config
from entropy_lab.train.model import cached_folder, load_model, model_hash, new_model
from entropy_lab.train.tasks import make_task
from entropy_lab.train.tokenizer import character_tokenizer
from entropy_lab.train.warmup import warm_up

SMALL = [
    "model.layers=1",
    "model.hidden=16",
    "model.intermediate=32",
    "model.heads=2",
    "task.digits=1",
    "model.warmup_iterations=6",
    "model.warmup_sequences=4",
    "model.warmup_ramp=2",
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "entropy-lab" / "models"


def small(*more: str) -> Config:
    return load_config(None, [*SMALL, *more])


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Counter:
    """Counts the iterations of a warm-up."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int, loss: float) -> None:
        assert loss > 0
        self.calls.append((done, total))


def test_the_demo_model_has_about_0_6_million_parameters() -> None:
    config = load_config()
    tokenizer = character_tokenizer(make_task("arithmetic").alphabet)
    model = new_model(config, tokenizer)
    count = sum(p.numel() for p in model.parameters())
    assert 550_000 <= count <= 700_000
    assert model.config.model_type == "qwen2" and model.config._attn_implementation == "sdpa"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.attention_dropout == 0.0


def test_the_tokenizer_is_one_token_a_character_and_survives_saving(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    alphabet = "0123456789+-*/(),:="
    made = character_tokenizer(alphabet)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "(25-7)*3,1:54="
    for tokenizer in (made, loaded):
        ids = tokenizer.encode(text)
        assert ids == [2 + alphabet.index(c) for c in text]
        assert tokenizer.decode(ids) == text
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        assert tokenizer.decode([0, *ids, 1], skip_special_tokens=True) == text
        assert len(tokenizer) == len(alphabet) + 2
        assert tokenizer.padding_side == "left"


def test_text_outside_the_alphabet_is_an_error() -> None:
    with pytest.raises(Exception, match="UNK"):
        character_tokenizer("01").encode("2")
    with pytest.raises(ValueError, match="repeats a character"):
        character_tokenizer("010")


def test_the_model_is_made_once_and_then_read(cache: Path) -> None:
    config, first, second = small(), Counter(), Counter()
    model, tokenizer = load_model(config, first)
    assert first.calls == [(i + 1, 6) for i in range(6)]
    again, _ = load_model(config, second)
    assert second.calls == []
    assert torch.equal(flat(model), flat(again))
    assert not model.training and next(model.parameters()).dtype == torch.float32
    assert tokenizer.encode("1+2=") == again_ids(tokenizer, "1+2=")
    assert [p.name for p in cache.iterdir()] == [model_hash(config)]
    assert cached_folder(config) == cache / model_hash(config)


def again_ids(tokenizer, text: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(c) for c in text]


def test_making_the_model_leaves_the_global_random_state(cache: Path) -> None:
    torch.manual_seed(5)
    random.seed(5)
    before, before_python = torch.get_rng_state(), random.getstate()
    load_model(small())
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == before_python


def test_equal_seeds_give_equal_weights_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(number)))
        torch.manual_seed(number)
        weights.append(flat(load_model(small(f"model.seed={seed}"))[0]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_hash_covers_what_decides_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    base = model_hash(small())
    changes = ["task.digits=2", "model.seed=1", "model.warmup_corrupt=0.1", "model.layers=2"]
    hashes = {model_hash(small(change)) for change in changes}
    assert len(hashes) == len(changes) and base not in hashes
    unrelated = ["run.seed=3", "run.name=x", "optimizer.lr=1", "rollout.max_tokens=3"]
    assert {model_hash(small(change)) for change in unrelated} == {base}
    one_digit = load_config(None, ["task.digits=2"])
    assert model_hash(one_digit) == model_hash(load_config())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert model_hash(small()) != base
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert model_hash(small()) not in {base, *hashes}


@pytest.mark.parametrize("damage", ["altered", "missing", "seal", "empty"])
def test_a_damaged_cache_entry_is_made_again(cache: Path, damage: str) -> None:
    config, counter = small(), Counter()
    made = flat(load_model(config)[0])  # a copy: weights that were read are mapped from the file
    folder = cached_folder(config)
    weights = folder / "model.safetensors"
    if damage == "altered":
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(data)
    elif damage == "missing":
        weights.unlink()
    elif damage == "seal":
        (folder / "entropy_lab.json").write_text("{")
    else:
        for path in folder.iterdir():
            path.unlink()
    again, _ = load_model(config, counter)
    assert len(counter.calls) == 6
    assert torch.equal(made, flat(again))
    assert [p.name for p in cache.iterdir()] == [folder.name]


def test_a_process_that_comes_second_takes_what_is_there(cache: Path) -> None:
    config, inner = small(), []

    def other_process(done: int, total: int, loss: float) -> None:
        if done == total:
            inner.append(load_model(config)[0])

    outer, _ = load_model(config, other_process)
    assert torch.equal(flat(outer), flat(inner[0]))
    assert [p.name for p in cache.iterdir()] == [cached_folder(config).name]


def test_an_interrupted_warm_up_leaves_nothing(cache: Path) -> None:
    def interrupt(done: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_model(small(), interrupt)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    with pytest.raises(RunError, match="cannot write the model cache .*XDG_CACHE_HOME"):
        load_model(small())


def test_without_xdg_the_cache_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cached_folder(small()).parent == tmp_path / ".cache" / "entropy-lab" / "models"


def test_the_warm_up_teaches_the_task() -> None:
    config = small("model.hidden=32", "model.warmup_iterations=150", "model.warmup_sequences=16")
    task = make_task("arithmetic", digits=1)
    tokenizer = character_tokenizer(task.alphabet)
    model = new_model(config, tokenizer)
    losses = []
    last = warm_up(model, tokenizer, task, config.model, lambda i, n, loss: losses.append(loss))
    assert losses[0] > 2.3  # about ln 15
    assert last < 1.4 and last == pytest.approx(sum(losses[-15:]) / 15)


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    from entropy_lab.train.warmup import _rate

    config = load_config(None, ["model.warmup_ramp=10", "model.warmup_decay=0.3"]).model
    rates = [_rate(i, 100, config) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:71] == [1.0] * 62
    assert rates[71] == pytest.approx(29 / 30) and rates[99] == pytest.approx(1 / 30)


def test_prompts_and_padding_are_not_trained_on() -> None:
    from entropy_lab.train.warmup import IGNORED, _batch

    task = make_task("arithmetic")
    tokenizer = character_tokenizer(task.alphabet)
    ids, labels = _batch(tokenizer, task, load_config().model, random.Random(0))
    assert ids.shape == labels.shape and len(ids) == 48
    for row, label in zip(ids, labels, strict=True):
        kept = label != IGNORED
        assert not kept[:6].any() and tokenizer.decode(row[:6].tolist()).endswith("=")
        assert torch.equal(row[kept], label[kept]) and row[kept][-1] == tokenizer.eos_token_id
        assert (row[6:][~kept[6:]] == tokenizer.pad_token_id).all()


def test_a_model_is_read_from_a_local_folder(cache: Path) -> None:
    made, _ = load_model(small())
    elsewhere = load_config(None, [f"model.path={cached_folder(small())}"])
    read, tokenizer = load_model(elsewhere)
    assert torch.equal(flat(made), flat(read)) and tokenizer.eos_token_id == 1


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    missing = load_config(None, [f"model.path={tmp_path / 'none'}"])
    with pytest.raises(ConfigError, match="none' holds no model .*give a local folder"):
        load_model(missing)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read: ") as caught:
        load_model(load_config(None, [f"model.path={tmp_path}"]))
    assert "\n" not in str(caught.value)


def test_the_cache_is_checked_by_content(cache: Path) -> None:
    load_model(small())
    assert module._intact(cached_folder(small()))
    assert not module._intact(cache)
