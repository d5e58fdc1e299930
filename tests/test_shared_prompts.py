"""Shared prompts and equal rows read once: the statistics, gradients and tangents of whole rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import entropy_lab.train.policy as policy_file
from entropy_lab.probe.inputs import take_rows
from entropy_lab.probe.path import Path as ParameterPath
from entropy_lab.train.config import load_config
from entropy_lab.train.model import load_model
from entropy_lab.train.policy import Inputs, make_score, model_inputs
from entropy_lab.train.randomness import seeded
from entropy_lab.train.shared_prompts import distinct
from ragged import policy, ragged
from tiny_models import SHORT, make_model, save_model

FIELDS = ("logp", "entropy", "m0", "m1", "m2")


@contextmanager
def whole_rows() -> Iterator[None]:
    """`make_score` as if nothing were shared."""
    with (
        patch.object(policy_file, "cache_of", lambda *_: None),
        patch.object(policy_file, "without_repeats", lambda inputs: (inputs, None)),
    ):
        yield


def inputs(equal: bool = True) -> Inputs:
    """16 rows with 4 prompts of unequal lengths; rows 9 and 14 equal others if `equal`."""
    responses = ragged().responses
    for row in (4, 8, 12):  # a group has one prompt
        responses.prompt_id[row - 4 : row] = responses.prompt_id[row - 4]
    responses.prompt_id[12:] = responses.prompt_id[12]
    index = torch.arange(16)
    if equal:
        index[9], index[14] = 8, 13
    return model_inputs(responses.rows(index))


def stats_and_grads(model: nn.Module, rows: Inputs, tiled: Any = "auto") -> Any:
    stats = make_score(model, 0.7, tiled=tiled)(rows)
    model.zero_grad()
    with seeded(2):
        pull = torch.randn(2, *stats.logp.shape).to(stats.logp)
    ((pull[0] * stats.logp).sum() + (pull[1] * stats.entropy).sum()).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return stats.detach(), grads


def assert_same(shared: Any, whole: Any, stats: float, grads: float) -> None:
    """grads: share of a gradient's largest entry; norms are computed in float32 even in a float64
    model, whose backward adds up in another order."""
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(shared[0], name), getattr(whole[0], name), rtol=stats, atol=stats
        )
    assert shared[1].keys() == whole[1].keys()
    for name, value in whole[1].items():
        scale = float(value.abs().max())
        torch.testing.assert_close(shared[1][name], value, rtol=0, atol=grads * scale + 1e-9)
    assert max(float(g.abs().max()) for g in whole[1].values()) > 0.1


@contextmanager
def tokens_read(model: Any) -> Iterator[list[int]]:
    """Tokens of each forward pass."""
    counts: list[int] = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _, given, out: counts.append(given[0].numel()))
    try:
        yield counts
    finally:
        handle.remove()


@pytest.mark.parametrize("tiled", [False, True])
def test_statistics_and_gradients_are_those_of_whole_rows(tiled: bool) -> None:
    model, rows = policy(), inputs()
    with whole_rows():
        whole = stats_and_grads(model, rows, tiled)
    assert_same(stats_and_grads(model, rows, tiled), whole, 1e-10, 1e-6)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "gpt2", "bloom", "qwen3_moe"])
def test_the_same_in_float32_with_windows_caps_and_experts(name: str) -> None:
    model, rows = make_model(name), inputs()
    with whole_rows():
        whole = stats_and_grads(model, rows)
    with tokens_read(model) as counts:
        assert_same(stats_and_grads(model, rows), whole, 2e-5, 5e-5)
    assert counts[-2:] == [4 * 7, 14 * 9]


def test_tangents_are_those_of_whole_rows() -> None:
    model, rows = policy(), inputs()
    path = ParameterPath.begin(model)
    with seeded(3):
        tangent = {n: torch.randn(p.shape, dtype=p.dtype) for n, p in model.named_parameters()}
    shared = path.jvp(make_score(model, 1.0), rows, tangent)
    with whole_rows():
        whole = path.jvp(make_score(model, 1.0), rows, tangent)
    for a, b in zip(shared, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert whole[1].abs().max() > 0.1


def test_how_many_tokens_are_read() -> None:
    """G P + B (T-1) of them; all B (P+T) where most rows have a prompt of their own."""
    model, rows = policy(), inputs()
    score = make_score(model, 1.0)
    few = take_rows(rows, torch.tensor([0, 5, 9]))
    one = Inputs(rows.input_id[:, :8], rows.seen[:, :8], rows.position[:, :8], rows.token_id[:, :1])
    with tokens_read(model) as counts, torch.no_grad():
        score(rows)
        assert counts == [4 * 7, 14 * 9]
        score(few)
        assert counts[2:] == [3 * 17]
        score(one)
        assert counts[3] == 4 * 7 and len(counts) == 4
    with whole_rows(), torch.no_grad():
        whole = make_score(model, 1.0)(one)
    torch.testing.assert_close(score(one).logp, whole.logp, rtol=1e-10, atol=1e-12)


def test_dropout_is_drawn_for_each_row() -> None:
    model = make_model("gpt2", resid_pdrop=0.5)
    score = make_score(model, 1.0)
    model.train()
    with tokens_read(model) as counts, torch.no_grad():
        stats = score(inputs())
    assert counts == [16 * 17]
    assert not torch.equal(stats.logp[8], stats.logp[9])


def test_layers_that_are_recomputed_read_whole_rows(tmp_path: Path) -> None:
    given = [*SHORT, f"model.path={save_model('llama', tmp_path / 'model')}"]
    model = load_model(load_config(None, [*given, "model.gradient_checkpointing=true"]))[0]
    score, rows = make_score(model, 1.0), inputs(equal=False)
    with tokens_read(model) as counts, torch.no_grad():
        score(rows)
    assert counts == [16 * 17]


def test_a_model_that_leaves_its_cache_aside_is_found_out() -> None:
    """Its responses would be read without their prompts."""
    model = make_model("llama")
    forward = model.forward

    def careless(
        input_ids: Any, attention_mask: Any = None, past_key_values: Any = None, **more: Any
    ) -> Any:
        own = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        return forward(input_ids, own, **more)

    rows = inputs()
    with torch.no_grad():
        expected = make_score(model, 1.0)(rows).logp
        model.forward = careless
        found = make_score(model, 1.0)(rows).logp
    assert (found - expected)[rows.seen[:, 7:].bool()].abs().max() < 1e-4


def test_distinct_rows_in_their_order() -> None:
    a, b = torch.tensor([[3], [1], [3], [3], [1]]), torch.tensor([[0], [2], [0], [5], [2]])
    first, which = distinct(a, b)
    assert first.tolist() == [0, 1, 3] and which.tolist() == [0, 1, 0, 2, 1]


def test_weights_are_aligned_and_tied_ones_stay_tied(tmp_path: Path) -> None:
    path = save_model("qwen2", tmp_path / "model")
    model: Any = load_model(load_config(None, [*SHORT, f"model.path={path}"]))[0]
    weights: list[Tensor] = list(model.parameters())
    assert all(p.data_ptr() % 64 == 0 for p in weights)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
