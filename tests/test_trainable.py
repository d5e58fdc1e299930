"""Frozen models with some trained names or with adapters: every bar of a whole model holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from entropy_lab import load
from entropy_lab.errors import ConfigError
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.model import load_model
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.replay import replay
from entropy_lab.train.rescore import open_rescorer
from entropy_lab.train.rollout import HFEngine
from entropy_lab.types import HELD_OUT
from tiny import assert_same_run, weights
from tiny_models import SHORT, any_reward, save_model

LORA = ["model.lora_rank=3"]
SUBSETS = {
    "names": ['model.trainable=["*.layers.0.mlp.*", "*.layers.1.self_attn.q_proj.weight"]'],
    "lora": LORA,
    "lora and head, layers recomputed": [
        *LORA, 'model.trainable=["lm_head.*"]', "model.gradient_checkpointing=true",
    ],
}  # fmt: skip
LONGER = ["train.rollouts=2", "train.checkpoint_every=1", "train.keep_checkpoints=0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture(params=SUBSETS)
def subset(request: pytest.FixtureRequest, base: Path) -> list[str]:
    if "lora" in request.param:
        pytest.importorskip("peft")
    return [*SHORT, *LONGER, f"model.path={base}", *SUBSETS[request.param]]


@pytest.fixture(autouse=True)
def rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    any_reward(monkeypatch)


def opened(base: Path, *more: str) -> Any:
    return load_model(load_config(None, [*SHORT, f"model.path={base}", *more]))[0]


def test_a_run_adds_up_and_moves_what_it_may(
    subset: list[str], base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = run_training(None, subset, tmp_path / "run")
    steps, tokens = load(out).steps(), load(out).tokens()
    assert steps["gradient_audit"].max() < 1e-6 and steps["repeat_max"].max() == 0.0
    assert steps["identity_error"].max() < 1e-5
    # At the start B = 0: what decays is A, which nothing depends on yet.
    assert (steps[["decay_term", "momentum_term"]][1:] != 0).all(axis=None)
    total = steps[["influence_sum", "momentum_term", "decay_term", "other_term"]].sum(axis=1)
    np.testing.assert_allclose(steps["G_dtheta"], total, rtol=1e-6)
    own = tokens[(tokens["flags"] & HELD_OUT) == 0]
    rest = (own["dH"] - own["dH_pred_jvp"]).abs().median()
    assert rest < 0.5 * own["dH"].abs().median()
    headless = not any("lm_head" in text for text in subset)
    assert (own["dH_pred_head"] == 0.0).all() == headless
    model = opened(base, *[t for t in subset if t.startswith(("model.trainable", "model.lora"))])
    trained, before, after = _trained(model), model.state_dict(), weights(out)
    for name in after:
        assert torch.equal(before[name], after[name]) == (name not in trained), name
    saved = load_file(sorted((out / "checkpoints").glob("step-*"))[-1] / "optimizer.safetensors")
    assert len({key.split(".")[0] for key in saved}) == len(trained)
    count = sum(after[name].numel() for name in trained)
    every = sum(tensor.numel() for tensor in after.values())
    assert f"trained: {count:,} of {every:,} parameters" in capfd.readouterr().err


def _trained(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_names_that_match_are_trained_and_no_others(base: Path) -> None:
    model = opened(base, *SUBSETS["names"])
    assert _trained(model) == {
        *(f"model.layers.0.mlp.{k}_proj.weight" for k in ("gate", "up", "down")),
        "model.layers.1.self_attn.q_proj.weight",
    }
    with pytest.raises(ConfigError, match=r"'\*\.none' matches no parameter: give globs of names"):
        opened(base, 'model.trainable=["*.mlp.*", "*.none"]')


def test_a_tied_parameter_has_both_of_its_names(tmp_path: Path) -> None:
    tied = save_model("qwen2", tmp_path)
    assert _trained(opened(tied, 'model.trainable=["lm_head.*"]')) == {"model.embed_tokens.weight"}


def test_no_learning_rate_no_change(subset: list[str], tmp_path: Path) -> None:
    out = run_training(None, [*subset, "optimizer.lr=0.0"], tmp_path / "run")
    tokens = load(out).tokens()
    assert len(tokens) > 50 and (tokens["dH"] == 0.0).all() and (tokens["dlogp"] == 0.0).all()


def test_the_probe_changes_no_weight_and_a_resumed_run_equals_the_whole(
    subset: list[str], tmp_path: Path
) -> None:
    whole = run_training(None, subset, tmp_path / "whole")
    without = run_training(None, [*subset, "probe.enabled=false"], tmp_path / "without")
    left, right = weights(whole), weights(without)
    assert all(torch.equal(left[k], right[k]) for k in left)
    part = run_training(None, [*subset, "train.rollouts=1"], tmp_path / "part")
    run_training(None, ["train.rollouts=2"], part, resume=True)
    assert_same_run(whole, part)


def test_a_replayed_step_is_the_step_and_a_checkpoint_scores_again(
    subset: list[str], tmp_path: Path
) -> None:
    out = run_training(None, [*subset, "train.replay_every=1"], tmp_path / "run")
    rows = replay(out, {}).rows.set_index("point")
    steps = load(out).steps().set_index("step")
    for column in ("dH_train", "dH_heldout", "G_dtheta", "grad_norm"):
        expected = steps.loc[rows.index, column]
        np.testing.assert_array_equal(rows[column], expected, err_msg=column)
    scorer = open_rescorer(out)
    logp, _ = scorer.score(["1+2="], [np.array([5, 6, 1])])
    model = opened(tmp_path, *subset)
    model.load_state_dict(weights(out), strict=False)
    tokenizer = load_model(load_config(None, subset))[1]
    ids = torch.tensor([[*tokenizer.encode("1+2="), 5, 6, 1]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits[0, -4:-1].double().log_softmax(-1)
    np.testing.assert_allclose(logp[0], plain[range(3), [5, 6, 1]], atol=1e-5)


# ---- adapters ----


@pytest.fixture
def peft() -> None:
    pytest.importorskip("peft")


@pytest.mark.usefixtures("peft")
def test_adapters_start_at_the_base_policy_and_depend_on_the_seed_alone(base: Path) -> None:
    plain, adapted = opened(base), opened(base, *LORA)
    out = HFEngine().generate(adapted, [[3, 4], [5]], 2, 6, 1.0, 0)
    inputs = model_inputs(out, slice(None))
    with torch.no_grad():
        pair = [make_score(m, 1.0)(inputs) for m in (plain, adapted)]
    assert torch.equal(pair[0].logp, pair[1].logp)
    assert _trained(adapted) == {n for n, _ in adapted.named_parameters() if "lora_" in n}
    assert not any("lm_head" in name for name in _trained(adapted))
    torch.manual_seed(9)
    again, other = opened(base, *LORA), opened(base, *LORA, "model.seed=1")
    name = next(n for n in _trained(adapted) if "lora_A" in n)
    same = [torch.equal(adapted.get_parameter(name), m.get_parameter(name)) for m in (again, other)]
    assert same == [True, False]


@pytest.mark.usefixtures("peft")
def test_targets_are_names_of_layers(base: Path, tmp_path: Path) -> None:
    model = opened(base, *LORA, 'model.lora_targets=["q_proj", "v_proj"]')
    assert {name.split(".")[4] for name in _trained(model)} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match=r"model.lora_targets: .*nothing") as caught:
        opened(base, *LORA, 'model.lora_targets=["nothing"]')
    assert "\n" not in str(caught.value)
    sparse = save_model("mixtral", tmp_path)
    with pytest.raises(ConfigError, match="experts of this model .* name attention layers alone"):
        opened(sparse, *LORA, 'model.lora_targets=["w1", "w2", "w3"]')
    attention = _trained(opened(sparse, *LORA))
    assert all("self_attn" in name for name in attention) and len(attention) == 2 * 2 * 4
    with pytest.raises(ConfigError, match="needs a rank: set model.lora_rank"):
        load_config(None, ['model.lora_targets=["q_proj"]'])


def test_without_peft_the_extra_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"lora_rank = 3 needs peft: .*'entropy-lab\[peft\]'"):
        opened(base, *LORA)
