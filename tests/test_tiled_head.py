"""The scoring pass without the logits as a whole: the same numbers, gradients and tangents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import entropy_lab.train.policy as policy_file
from entropy_lab import load
from entropy_lab.errors import ConfigError
from entropy_lab.interventions import make_method
from entropy_lab.probe.path import Path as ParameterPath
from entropy_lab.train.launch import run_training
from entropy_lab.train.layout import Layout
from entropy_lab.train.policy import make_score, plain_head
from entropy_lab.train.randomness import seeded
from ragged import minibatches, policy
from tiny import TINY

FIELDS = ("logp", "entropy", "m0", "m1", "m2")


def inputs(model: Any) -> Any:
    return minibatches(model, make_method("grpo"), Layout(8))[0][0].inputs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tiled_statistics_and_gradients_are_those_of_the_logits(temperature: float) -> None:
    model = policy()
    rows = inputs(model)
    found = []
    for tiled in (False, True):
        stats = make_score(model, temperature, tiled=tiled)(rows)
        model.zero_grad()
        with seeded(2):
            pull = torch.randn(2, *stats.logp.shape, dtype=torch.float64)
        ((pull[0] * stats.logp).sum() + (pull[1] * stats.entropy).sum()).backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((stats.detach(), grads))
    (plain, by_logits), (tiled, by_tiles) = found
    assert by_logits.keys() == by_tiles.keys()
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(tiled, name), getattr(plain, name), rtol=1e-10, atol=1e-12
        )
    for name, value in by_logits.items():
        torch.testing.assert_close(by_tiles[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert max(float(g.abs().max()) for g in by_logits.values()) > 0.1


def test_tiled_tangents_are_those_of_the_logits() -> None:
    """Forward mode along a path, with the head's own weight (tied here) moving as well."""
    model = policy()
    rows, path = inputs(model), ParameterPath.begin(model)
    with seeded(3):
        tangent = {n: torch.randn_like(p) for n, p in path.start.items()}
    plain, tiled = (path.jvp(make_score(model, 1.0, tiled=t), rows, tangent) for t in (False, True))
    for one, other in zip(plain, tiled, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)
        assert float(one.abs().max()) > 0.1


def test_no_logits_are_made_and_auto_goes_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy()
    rows = inputs(model)
    made: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: made.append(1))
    for tiled, above, expected in (
        (True, 0, 0), (False, 0, 1), ("auto", 8 * 10 * 12 * 4, 1), ("auto", 8 * 10 * 12 * 4 - 1, 0)
    ):  # fmt: skip
        monkeypatch.setattr(policy_file, "TILED_ABOVE", above)
        score = make_score(model, 1.0, tiled=tiled)
        made.clear()
        score(rows)
        assert len(made) == expected, (tiled, above)


class Biased(nn.Linear):
    pass


def capped(model: Any) -> None:
    model.config.final_logit_softcapping = 30.0


def biased(model: Any) -> None:
    model.lm_head.bias = nn.Parameter(torch.zeros(12, dtype=torch.float64))


def scaled(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda *a: a[-1] * 1.1)
    real = model.forward

    def forward(*args: Any, **named: Any) -> Any:
        out = real(*args, **named)
        out.logits = out.logits * 1.5
        return out

    model.forward = forward


def wrapped(model: Any) -> None:
    new = Biased(16, 12, bias=False, dtype=torch.float64)
    model.lm_head = new


@pytest.mark.parametrize("change", [capped, biased, scaled, wrapped])
def test_another_head_keeps_the_logits(change: Any) -> None:
    model = policy()
    assert plain_head(model) is model.lm_head
    change(model)
    assert plain_head(model) is None
    make_score(model, 1.0, tiled="auto")
    with pytest.raises(ConfigError, match="tiled_head = true needs .* which Qwen2ForCausalLM does"):
        make_score(model, 1.0, tiled=True)


def test_a_model_without_a_head_is_left_alone() -> None:
    assert plain_head(nn.Linear(3, 3)) is None


def test_the_measuring_rules_hold_with_tiles(tmp_path: Path) -> None:
    settings = [*TINY, "train.tiled_head=true", "train.micro_tokens=40", "train.rollouts=2"]
    still = load(run_training(None, [*settings, "optimizer.lr=0.0"], tmp_path / "still"))
    assert (still.tokens()["dH"] == 0.0).all() and (still.steps()["repeat_max"].dropna() == 0).all()
    out = load(run_training(None, [*settings, "probe.deep_every=1"], tmp_path / "tiled"))
    plain = [*settings, "train.tiled_head=false", "probe.deep_every=1"]
    other = load(run_training(None, plain, tmp_path / "plain"))
    assert out.steps()["before_is_loss_forward"].all()
    assert out.steps()["gradient_audit"].dropna().max() <= 1e-4
    one, two = out.tokens(step=0), other.tokens(step=0)
    assert one["uid"].equals(two["uid"])
    for name in ("entropy", "logp", "grad_logp", "m1", "dH_pred_jvp"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=2e-5, err_msg=name)


def test_bfloat16_products_run_in_the_dtype_of_the_pass() -> None:
    model = policy().float()
    rows = inputs(model)
    plain, tiled = (
        make_score(model, 1.0, "bfloat16", tiled=t)(rows).detach() for t in (False, True)
    )
    exact = make_score(model, 1.0, tiled=False)(rows).detach()
    assert plain.entropy.dtype == tiled.entropy.dtype == torch.float32
    torch.testing.assert_close(tiled.entropy, plain.entropy, rtol=0.05, atol=0.05)
    assert float((tiled.entropy - exact.entropy).abs().max()) > 1e-5
