"""The engine's process from the trainer's side, with a stand-in for the package vllm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.train.randomness import seeded
from entropy_lab.train.rollout import VLLMEngine
from entropy_lab.train.rollout.vllm import environment, request_seeds
from entropy_lab.train.settings import VllmConfig

EOS, PAD = 1, 0
PROMPTS = [[5, 6, 7, 8], [9, 4], [3]]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """fail(name) sets the defect of the engines started later; their folders lie in tmp_path."""
    package = tmp_path / "site" / "vllm"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "stub_vllm.py", package / "__init__.py")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.syspath_prepend(str(package.parent))
    folders = tmp_path / "folders"
    folders.mkdir()
    monkeypatch.setattr("entropy_lab.train.rollout.vllm.roomy", lambda *_: str(folders))

    def fail(name: str) -> Path:
        monkeypatch.setenv("STUB_FAIL", name)
        return folders

    fail("")
    return fail


def small_model(tied: bool = True):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    with seeded(5):
        return Qwen2ForCausalLM(shape).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_every_rollout_carries_the_present_weights(stub, tied: bool) -> None:
    model, engine, folders = small_model(tied), VLLMEngine(), stub("")
    for _ in range(2):
        out = engine.generate(model, PROMPTS, 2, 8, 1.0, seed=3)
        total = sum(float(p.detach().double().sum()) for p in model.parameters())
        if tied:  # the head once more, under its own name
            total += float(model.lm_head.weight.detach().double().sum())
        assert out.logp is not None and out.logp.dtype == torch.float32
        assert out.logp[out.mask].unique().item() == pytest.approx(-total, rel=1e-6)
        assert (out.logp[~out.mask] == 0).all()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.25)
    kept = next(folders.iterdir())
    assert {p.name for p in kept.iterdir()} == {"model", "log.txt"}  # no weights stay behind
    assert not list((kept / "model").glob("*.safetensors"))
    engine.close()
    assert not list(folders.iterdir())
    engine.close()


def test_rows_padding_and_ends(stub) -> None:
    engine = VLLMEngine()
    out = engine.generate(small_model(), PROMPTS, 20, 6, 1.0, seed=3)
    engine.close()
    for row, prompt in enumerate(p for p in PROMPTS for _ in range(20)):
        assert out.prompt_id[row][out.prompt_mask[row]].tolist() == prompt
        tokens = out.token_id[row][out.mask[row]].tolist()
        assert EOS not in tokens[:-1]
        assert bool(out.truncated[row]) == (tokens[-1] != EOS)
        assert len(tokens) == 6 or tokens[-1] == EOS
        assert (out.token_id[row][~out.mask[row]] == PAD).all()
    assert out.truncated.any() and not out.truncated.all()
    assert len({tuple(row) for row in out.token_id.tolist()}) > 30  # seeds of their own


def test_seeds_depend_on_seed_prompt_and_sample_alone() -> None:
    seeds = request_seeds(4, 3, 5)
    flat = [s for row in seeds for s in row]
    assert len(set(flat)) == 15 and all(0 <= s < 2**63 for s in flat)
    assert request_seeds(4, 2, 5) == seeds[:2]
    assert [row[:3] for row in seeds] == request_seeds(4, 3, 3)
    assert not set(flat) & {s for row in request_seeds(5, 3, 5) for s in row}


FAILURES = {
    "start": r"the vllm engine failed to start: ValueError: no room for the cache; its log ends: ",
    "update": "the vllm engine failed to update: RuntimeError: half of it; its log ends: ",
    "cache": "failed to update: RuntimeError: the prefix cache was not reset",
    "abort": "failed to generate: RuntimeError: 6 of 6 responses, ended by {'abort'}",
    "exit": "the vllm engine died while it had to generate: exit code 7; .*the last words$",
    "hang": r"the vllm engine took more than 4 s to start: allow more with vllm.start_timeout, or",
    "nan": "cannot sample: the model's logits are not finite, so training has diverged; lower",
}


@pytest.mark.parametrize("defect", FAILURES)
def test_a_failure_is_one_line_and_the_next_engine_is_new(stub, defect: str) -> None:
    folders = stub(defect)
    engine = VLLMEngine(VllmConfig(start_timeout=4.0 if defect == "hang" else 60.0))
    with pytest.raises(RunError, match=FAILURES[defect]) as caught:
        engine.generate(small_model(), PROMPTS, 2, 8, 1.0, seed=3)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    if defect != "nan":
        assert not list(folders.iterdir())
    stub("")
    if defect == "nan":
        engine.close()
    assert engine.generate(small_model(), PROMPTS, 2, 8, 1.0, seed=3).mask.any()
    engine.close()


def test_a_killed_engine_is_reported(stub) -> None:
    engine, model = VLLMEngine(), small_model()
    engine.generate(model, PROMPTS, 2, 8, 1.0, seed=3)
    os.kill(engine._process._child.pid, signal.SIGKILL)
    wanted = "died while it had to update: signal SIGKILL, .* out of memory; its log ends: "
    with pytest.raises(RunError, match=wanted):
        engine.generate(model, PROMPTS, 2, 8, 1.0, seed=3)
    engine.close()


def test_what_it_cannot_hold_is_named(stub) -> None:
    engine, model = VLLMEngine(VllmConfig(max_model_len=10)), small_model()
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        engine.generate(model, [[3], []], 1, 4, 1.0, seed=0)
    wanted = "longest prompt and 7 tokens make 11, but the vllm engine holds 10: raise vllm.max_mo"
    with pytest.raises(RunError, match=wanted):
        engine.generate(model, PROMPTS, 1, 7, 1.0, seed=0)
    model.peft_config = {}
    engine.close()
    with pytest.raises(ConfigError, match="this model has adapters: set rollout.engine = 'hf'"):
        engine.generate(model, PROMPTS, 1, 4, 1.0, seed=0)


def test_a_python_without_vllm_is_named_before_anything_starts(stub, monkeypatch) -> None:
    stub("import")
    wanted = r"cannot run vllm: ModuleNotFoundError: No module named 'gears'; make an environment"
    with pytest.raises(ConfigError, match=wanted):
        VLLMEngine().generate(small_model(), PROMPTS, 2, 8, 1.0, seed=3)
    with pytest.raises(ConfigError, match="vllm.python = '/no/python' is no program"):
        VLLMEngine(VllmConfig(python="/no/python"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs vllm, which this Python lacks: pip install"):
        VLLMEngine()


ORPHAN = """
import sys
from test_vllm_process import PROMPTS, small_model
from entropy_lab.train.rollout import VLLMEngine, vllm
vllm.roomy = lambda *_: sys.argv[1]
engine = VLLMEngine()
engine.generate(small_model(), PROMPTS, 2, 8, 1.0, seed=3)
print(engine._process._child.pid, flush=True)
input()
"""


def test_the_engine_does_not_outlive_the_trainer(stub) -> None:
    folders = stub("")
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT), str(ROOT / "tests")])
    trainer = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    pid = int(trainer.stdout.readline())
    os.kill(pid, 0)
    assert len(list(folders.iterdir())) == 1
    trainer.kill()
    trainer.wait()
    end = time.monotonic() + 30
    while list(folders.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list(folders.iterdir())  # its last act before it ends


def test_the_engine_s_variables(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    env = environment(torch.device("cuda", 1), other_python=True, eager=False)
    assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "PYTHONPATH"} & set(env)
    assert env["CUDA_VISIBLE_DEVICES"] == "3" and env["VLLM_CPU_KVCACHE_SPACE"] == "9"
    assert env["OMP_NUM_THREADS"] == str(torch.get_num_threads())
    assert env["TORCHDYNAMO_DISABLE"] == "0"
    env = environment(torch.device("cpu"), other_python=False, eager=True)
    assert env["PYTHONPATH"] == "1" and env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert env["TORCHDYNAMO_DISABLE"] == "1"
