"""Layers that are computed again in the backward pass: equal gradients, equal measurements."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from entropy_lab import load
from entropy_lab.errors import ConfigError
from entropy_lab.probe import Scorer
from entropy_lab.probe.path import Path as ParameterPath
from entropy_lab.probe.precision import SAME, Precision
from entropy_lab.probe.scorer import active_dropout
from entropy_lab.train import parts
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.model import load_model
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.rollout import HFEngine
from tiny import assert_same_run
from tiny_models import SHORT, any_reward, save_model

AGAIN = "model.gradient_checkpointing=true"


def opened(folder: Path, *more: str) -> Any:
    return load_model(load_config(None, [*SHORT, f"model.path={folder}", *more]))[0]


def inputs_of(model: Any) -> Any:
    return model_inputs(HFEngine().generate(model, [[3, 4, 5], [6]], 3, 6, 1.0, 0), slice(None))


class Calls:
    """Counts the forward passes of a model's first layer."""

    def __init__(self, model: Any):
        self.count = 0
        stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
        stack[0].register_forward_pre_hook(self.add)  # recomputing stops before its end

    def add(self, *_: Any) -> None:
        self.count += 1


def gradient(model: Any, inputs: Any, precision: Precision = SAME) -> tuple:
    """By the parameters, of the sum of logp and entropy; forwards of the first layer."""
    optimizer = torch.optim.SGD(model.parameters())
    scorer = Scorer(model, make_score(model, 1.0, share_prompts=False), optimizer, precision)
    calls = Calls(model)
    stats = scorer.with_grad(inputs)
    grads = torch.autograd.grad((stats.logp + stats.entropy).sum(), list(model.parameters()))
    return grads, calls.count


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt2", "opt", "qwen3_moe"])
def test_gradients_are_the_same_and_layers_run_twice(tmp_path: Path, name: str) -> None:
    # The layers of OPT drop units themselves, where they are in training mode.
    folder = save_model(name, tmp_path, **({"dropout": 0.5} if name == "opt" else {}))
    plain, again = opened(folder), opened(folder, AGAIN)
    inputs = inputs_of(plain)
    left, once = gradient(plain, inputs)
    right, twice = gradient(again, inputs)
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert not active_dropout(again)
    score, calls = make_score(again, 1.0), Calls(again)
    with torch.no_grad():
        score(inputs)
    assert calls.count == 1


def test_sampling_keeps_its_cache(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path)
    plain, again = opened(folder), opened(folder, AGAIN)
    flags = [m.training for m in again.modules()]
    left, right = inputs_of(plain), inputs_of(again)
    assert torch.equal(left.input_id, right.input_id) and torch.equal(left.seen, right.seen)
    assert [m.training for m in again.modules()] == flags


def test_exchanged_parameters_are_those_of_the_backward_pass_too(tmp_path: Path) -> None:
    """In an arithmetic of its own a pass keeps its activations: a layer computed again after it
    would meet the bfloat16 weights. Forward mode is not disturbed either."""
    folder = save_model("llama", tmp_path)
    low = [opened(folder, "model.dtype=bfloat16", *more) for more in ([], [AGAIN])]
    inputs = inputs_of(low[0])
    for wide in (torch.float32, torch.float64):
        left, right = (gradient(m, inputs, Precision(wide)) for m in low)
        assert left[1] == right[1] == 1
        assert all(torch.equal(a, b) for a, b in zip(left[0], right[0], strict=True))
    tangents = []
    for model in (opened(folder), opened(folder, AGAIN)):
        path = ParameterPath.begin(model)
        along = {n: torch.ones_like(p) for n, p in path.start.items()}
        tangents.append(path.jvp(make_score(model, 1.0, share_prompts=False), inputs, along)[1])
        layers = [m for m in model.modules() if m.training]
        assert all(m.gradient_checkpointing for m in layers)  # back on where it was
    assert len(layers) == 2
    assert torch.equal(*tangents) and tangents[0].abs().max() > 0


@pytest.mark.parametrize("more", [[], ["model.autocast=bfloat16"]], ids=["float32", "autocast"])
def test_a_run_is_the_same_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    any_reward(monkeypatch)
    # A model that computes layers again reads whole rows.
    monkeypatch.setattr(parts, "make_score", partial(make_score, share_prompts=False))
    given = [*SHORT, *more, f"model.path={save_model('qwen3', tmp_path / 'model')}"]
    plain = run_training(None, given, tmp_path / "plain")
    again = run_training(None, [*given, AGAIN], tmp_path / "again")
    assert_same_run(plain, again)
    steps = load(again).steps()
    assert steps["gradient_audit"].max() < (0.02 if more else 1e-6)
    assert not steps["dropout_off"].any() and steps["repeat_max"].max() == 0.0


def test_a_model_without_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="LlamaForCausalLM does not support it; set false"):
        opened(save_model("llama", tmp_path), AGAIN)
