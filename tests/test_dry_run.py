"""What a dry run says is what the run then does; its memory is counted against real tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from entropy_lab import cli, load
from entropy_lab.errors import ConfigError
from entropy_lab.train import dry_run
from entropy_lab.train.checkpoint import complete_checkpoints
from entropy_lab.train.config import Config, load_config
from entropy_lab.train.disk import size
from entropy_lab.train.dry_run import describe
from entropy_lab.train.launch import run_training
from entropy_lab.train.memory import Shape, memory_parts, micro_size, peak, shape_of
from entropy_lab.train.model import new_model
from entropy_lab.train.parts import make_optimizer
from entropy_lab.train.tasks import Arithmetic
from entropy_lab.train.tokenizer import character_tokenizer
from entropy_lab.train.trainable import choose_trainable
from tiny import TINY

QWEN_7B = Shape(7_615_616_512, layers=28, hidden=3584, intermediate=18944, kv=512, vocab=152064)


def model_of(config: Config) -> torch.nn.Module:
    return new_model(config, character_tokenizer(Arithmetic().alphabet))


def outlined(config: Config) -> torch.nn.Module:
    return dry_run._outline(config, Arithmetic())[0]


def part(config: Config, shape: Shape, name: str, prompt_tokens: int = 4) -> float:
    found = [p for p in memory_parts(config, shape, prompt_tokens) if p.what.startswith(name)]
    return found[0].bytes if found else 0


def saved_bytes(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """Bytes that the layers keep for the backward pass, weights left aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(input_ids=ids, use_cache=False)
    return sum(count for count, _ in kept.values())


@pytest.mark.parametrize("sizes", [[], ["model.layers=4", "model.intermediate=64"]])
def test_weights_states_and_activations_are_those_of_real_tensors(sizes: list[str]) -> None:
    words = ["train.micro_batch=4", "rollout.max_tokens=28", *sizes]
    config = load_config(None, words)
    model = model_of(config)
    shape = shape_of(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert part(config, shape, "weights (") == part(config, shape, "gradients") == weights
    optimizer = make_optimizer(config, list(model.parameters()))
    ids = torch.randint(10, (4, 32))
    model(input_ids=ids).logits.sum().backward()
    optimizer.step()
    states = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    assert part(config, shape, "optimizer") == sum(v.numel() * v.element_size() for v in states)
    # Per layer, so that embedding, head and masks do not count.
    fewer = model_of(load_config(None, [*words, f"model.layers={shape.layers - 1}"]))
    layer = saved_bytes(model, ids) - saved_bytes(fewer, ids)
    estimated = part(config, shape, "activations") / shape.layers
    assert estimated == pytest.approx(layer, rel=0.1)


@pytest.mark.parametrize(
    "words",
    [
        ["model.trainable=['*layers.2*', 'model.norm*']"],
        ["model.lora_rank=4"],
        ["model.lora_rank=4", "model.trainable=['*norm*']"],
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_frozen_models_only_what_is_trained_has_gradients_and_states(
    words: list[str], dtype: str
) -> None:
    if "lora" in words[0]:
        pytest.importorskip("peft")
    config = load_config(None, [*words, "train.micro_batch=4", f"model.dtype={dtype}"])
    model = model_of(config)
    model.to(getattr(torch, dtype))
    choose_trainable(model, config.model)
    shape = shape_of(model)
    params = [p for p in model.parameters() if p.requires_grad]
    every = sum(p.numel() * p.element_size() for p in model.parameters())
    optimizer = make_optimizer(config, params)
    model(input_ids=torch.randint(10, (4, 32))).logits.float().sum().backward()
    optimizer.step()
    states = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert part(config, shape, "weights (") == every
    assert part(config, shape, "optimizer") == sum(v.numel() * v.element_size() for v in states)
    assert part(config, shape, "gradients") == sum(g.numel() * g.element_size() for g in gradients)
    assert 0 < part(config, shape, "gradients") < every / 2
    dry = shape_of(outlined(config))  # as a dry run sees it
    assert dry == shape


def test_the_cache_is_as_large_as_the_real_one() -> None:
    from transformers import DynamicCache

    config = load_config(None, ["rollout.prompts=2", "rollout.group_size=2", "train.minibatches=1"])
    model = model_of(config)
    cache = DynamicCache(config=model.config)  # type: ignore[arg-type]
    model(input_ids=torch.zeros(4, 16, dtype=torch.long), past_key_values=cache)
    held = sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values))
    assert part(config, shape_of(model), "KV cache", prompt_tokens=4) == held  # 12 tokens after it


def test_a_7b_model_by_hand() -> None:
    words = ["model.autocast=bfloat16", "train.micro_batch=2", "rollout.max_tokens=3072"]
    words += ["probe.deep_every=0"]
    parts = {p.what: p.bytes for p in memory_parts(load_config(None, words), QWEN_7B, 1024)}
    n = 7_615_616_512
    assert parts["weights (7,615.6 M)"] == 4 * n
    assert parts["optimizer (adamw)"] == 8 * n
    assert parts["gradients"] == 4 * n and parts["weights in bfloat16"] == 2 * n
    assert parts["logits and their gradient"] == 2 * 256 * 2**20  # not held as a whole
    whole = memory_parts(load_config(None, [*words, "train.tiled_head=false"]), QWEN_7B, 1024)
    [held] = [p.bytes for p in whole if p.what == "logits and their gradient"]
    assert held == 2 * 2 * 2 * 3073 * 152064
    tokens = 2 * 4096
    assert parts["activations (rough)"] == 28 * tokens * (32 * 3584 + 2 * (2 * 512 + 4 * 18944))
    assert parts["KV cache (256 responses)"] == 2 * 28 * 512 * 256 * 4096 * 4
    assert "deep step (theta, path)" not in parts and "weights in float32" not in parts


def test_the_most_at_one_time_is_the_largest_phase() -> None:
    config = load_config(None, ["probe.deep_every=0"])
    parts = memory_parts(config, QWEN_7B, 6)
    phase, most = peak(parts)
    assert phase == "update"
    assert most == sum(p.bytes for p in parts if phase in p.phases) < sum(p.bytes for p in parts)
    deep = load_config(None, ["probe.deep_every=5"])
    assert peak(memory_parts(deep, QWEN_7B, 6))[0] == "probe"
    assert part(deep, QWEN_7B, "deep") == 12 * QWEN_7B.parameters
    host = load_config(None, ["probe.deep_every=5", "probe.snapshots=cpu"])
    assert part(host, QWEN_7B, "deep") == 8 * QWEN_7B.parameters


def test_micro_batches_are_no_larger_than_a_minibatch() -> None:
    assert micro_size(load_config(None, ["train.micro_batch=50"]), 8) == (50, 50 * 20)
    assert micro_size(load_config(None, ["train.micro_batch=500"]), 8) == (128, 128 * 20)


def test_sizes_are_in_thousands() -> None:
    assert [size(x) for x in (7, 1500, 999_700, 15.2e9, 3e12)] == [
        "7 B", "1.5 kB", "1 MB", "15.2 GB", "3 TB"
    ]  # fmt: skip


def test_what_is_said_is_what_the_run_does(tmp_path: Path) -> None:
    words = [*TINY, "train.keep_checkpoints=2", "train.checkpoint_every=1", "rollout.max_tokens=8"]
    said = describe(load_config(None, words), tmp_path / "run")
    out = run_training(None, words, tmp_path / "run")
    run = load(out)
    assert "6 rollouts of 16 responses, 2 optimizer steps each: 12 steps" in said
    assert len(run.steps()) == 12 and len(run.samples()) == 6 * 16
    assert "a step: 8 responses in 2 micro-batches of up to 4" in said
    tokens = run.tokens()
    assert tokens.groupby("step")["micro"].nunique().max() >= 2
    assert "prompts: 4 to 4 tokens, median 4 (256 drawn)" in said
    assert {len(p) for p in run.samples()["prompt"]} == {4}
    kept = complete_checkpoints(out)
    assert f"disk: {len(kept)} of 6 checkpoints kept" in said
    exact = sum((kept[0] / f"{n}.safetensors").stat().st_size for n in ("model", "optimizer"))
    stated = float(re.search(r"kept, ([\d.]+) kB each", said)[1]) * 1000
    assert stated == pytest.approx(exact, rel=0.05)  # headers and step counters are small
    rows = int(re.search(r"at most ([\d,]+) token rows a step", said)[1].replace(",", ""))
    assert tokens.groupby("step").size().max() <= rows
    assert said.startswith(load_config(None, words).to_toml())


def test_a_long_response_is_measured_against_the_model(tmp_path: Path) -> None:
    said = describe(load_config(None, ["rollout.max_tokens=300"]), tmp_path)
    assert "# warning: 306 tokens are more than the model's 256 positions" in said


def test_the_rate_the_best_and_the_replay_points_are_said(tmp_path: Path) -> None:
    words = ["optimizer.schedule=cosine", "optimizer.warmup_steps=5", "train.keep_best=reward"]
    said = describe(load_config(None, [*words, "train.replay_every=7"]), tmp_path / "run")
    assert "# learning rate 0.0002, 5 steps of warm-up, cosine over 120" in said
    assert "# disk: 3 of 3 checkpoints kept" in said
    assert "the best by mean reward of 10 rollouts among them" in said
    assert "# disk: 9 of 9 replay points kept" in said


def test_a_task_says_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arithmetic, "summary", "data: train.parquet: 17,398 rows")
    assert "# data: train.parquet: 17,398 rows" in describe(load_config(), tmp_path)


def model_folder(folder: Path) -> Path:
    """A local model with a long context, without its weights."""
    config = load_config()
    tokenizer = character_tokenizer(Arithmetic().alphabet)
    new_model(config, tokenizer).config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_model_is_sized_without_its_weights(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    written = json.loads((folder / "config.json").read_text())
    written |= {"num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944}
    written |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    written |= {"layer_types": ["full_attention"] * 28, "tie_word_embeddings": False}
    written |= {"max_window_layers": 28}
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "model.safetensors").write_bytes(b"never read")
    said = describe(load_config(None, [f"model.path={folder}"]), tmp_path / "run")
    assert "28 layers of 3584, vocabulary 152,064, 7,615.6 M parameters" in said
    assert "weights (7,615.6 M)                30.5 GB  always" in said


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("config.json", "holds no model (config.json is missing)"),
        ("model.safetensors", "holds no weights (*.safetensors): download all of it"),
        ("tokenizer.json", "the tokenizer makes no token of it; is its tokenizer.json there?"),
    ],
)
def test_an_incomplete_model_is_one_line(
    tmp_path: Path, missing: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / missing).unlink()
    with pytest.raises(ConfigError) as caught:
        describe(load_config(None, [f"model.path={folder}"]), tmp_path / "run")
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert cli.run(["train", "--dry-run", "--set", f"model.path={folder}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_wrong_settings_are_the_same_line_as_without_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (["train.rolouts=3"], ["method.name=gpro"], ["train.minibatches=3"]):
        flags = [word for text in words for word in ("--set", text)]
        assert cli.run(["train", *flags, "--dry-run"]) == 2
        dry = capsys.readouterr()
        assert cli.run(["train", *flags]) == 2
        assert dry == capsys.readouterr() and dry.err.startswith("error: ") and not dry.out
