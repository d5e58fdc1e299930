"""Architectures of `transformers`: each loads, is scored as it computes, trains and is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from entropy_lab import load
from entropy_lab.errors import RunError
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.model import load_model
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.rollout import HFEngine, Responses
from entropy_lab.types import HELD_OUT
from tiny_models import ARCHITECTURES, SHORT, SPARSE, any_reward, save_model

PROMPTS = [[5, 6, 7, 8, 9, 10, 4], [9, 4], [3, 3, 3, 5, 2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each architecture's folder, made when first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = save_model(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return get


def opened(path: Path, *more: str) -> Any:
    return load_model(load_config(None, [*SHORT, f"model.path={path}", *more]))[0]


def alone(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log p of each response token: no batch, no padding, no cache, float64 softmax."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return logp[range(len(response)), response]


def rollout(model: Any, **changes: Any) -> Responses:
    given = {"n": 3, "max_tokens": 9, "temperature": 1.0, "seed": 1} | changes
    return HFEngine().generate(model, PROMPTS, **given)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_padded_batch_scores_as_each_row_alone(folder: Any, name: str) -> None:
    """Left-padded prompts, right-padded responses, beside other rows: experts, windows and
    positions see none of it."""
    model = opened(folder(name))
    plain = opened(folder(name), "model.attention=eager")
    out = rollout(model)
    assert out.mask.sum(1).unique().numel() > 1
    with torch.no_grad():
        stats = make_score(model, 1.0)(model_inputs(out, slice(None)))
    for row, mask in enumerate(out.mask):
        expected = alone(plain, PROMPTS[row // 3], out.token_id[row][mask].tolist())
        assert (stats.logp[row][mask] - expected).abs().max() < 1e-5
    assert stats.logp[out.mask].std() > 0.2  # far from flat, or this would show nothing


def test_a_model_that_takes_neither_positions_nor_a_share_of_the_logits(folder: Any) -> None:
    """It is asked for neither, and its logits at every position are cut to the same rows."""
    model = opened(folder("bloom"))  # finds its positions in the mask

    class Older(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    inputs = model_inputs(rollout(model), slice(None))
    with torch.no_grad():
        left, right = make_score(model, 1.0)(inputs), make_score(Older(), 1.0)(inputs)
    assert (left.logp - right.logp)[rollout(model).mask].abs().max() < 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cold_sampling_is_the_argmax_of_plain_forwards(folder: Any, name: str) -> None:
    """The rollout's cache, its copies of prompts and its padding change nothing."""
    model = opened(folder(name))
    out = rollout(model, n=2, temperature=1e-5)
    for row in range(0, len(out.mask), 2):
        text = list(PROMPTS[row // 2])
        for token in out.token_id[row][out.mask[row]].tolist():
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([text])).logits[0, -1]
            assert logits.max() - logits[token] < 1e-5
            text.append(token)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_steps_are_trained_and_add_up(
    folder: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_reward(monkeypatch)
    jvp = "slope" if name == "bloom" else "forward"
    given = [f"model.path={folder(name)}", f"probe.jvp={jvp}"]
    run = load(run_training(None, [*SHORT, *given], tmp_path / "run"))
    steps, tokens = run.steps(), run.tokens()
    assert len(steps) == 2 and (tokens["dH"] != 0).any()
    assert steps["gradient_audit"].max() < 1e-6 and steps["repeat_max"].max() == 0.0
    assert steps["identity_error"].max() < (1e-5 if jvp == "forward" else 0.02)
    assert steps["floor"].max() < 3e-6
    if name not in SPARSE:  # a token that changes its experts has no first order
        own = tokens[(tokens["flags"] & HELD_OUT) == 0]
        rest = (own["dH"] - own["dH_pred_jvp"]).abs().median()
        assert rest < 0.5 * own["dH"].abs().median()


def test_an_operation_without_a_forward_rule_is_one_line(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_reward(monkeypatch)
    with pytest.raises(RunError, match="an operation of this model .*: set probe.jvp=slope") as e:
        run_training(None, [*SHORT, f"model.path={folder('bloom')}"], tmp_path / "run")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_learning_rate_no_change(folder: Any, tmp_path: Path, name: str) -> None:
    still = ["optimizer.lr=0.0", "probe.deep_every=0", f"model.path={folder(name)}"]
    tokens = load(run_training(None, [*SHORT, *still], tmp_path / "run")).tokens()
    assert len(tokens) > 50
    assert (tokens["dH"] == 0.0).all() and (tokens["dlogp"] == 0.0).all()
