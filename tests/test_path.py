"""theta(alpha): exact ends, slopes and splits, and parameters that come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from entropy_lab.interventions import make_method
from entropy_lab.loss import policy_loss
from entropy_lab.probe.path import Path, last_block, layer_groups
from entropy_lab.probe.precision import plain_kernels, swapped
from toy import Toy, batches, score_of


class Tied(Toy):
    """The head shares the embedding's weight; the body is frozen."""

    def __init__(self, **options):
        super().__init__(**options)
        self.head = nn.Linear(
            16, self.embed.num_embeddings, bias=False, dtype=self.mix.weight.dtype
        )
        self.head.weight = self.embed.weight
        self.mix = nn.Linear(32, 16, dtype=self.mix.weight.dtype)
        self.mix.requires_grad_(False)


def stepped(model: nn.Module, lr: float = 1e-2, dtype=torch.float64):
    """Take one AdamW step; returns (path, inputs, batch)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    rows, batch = batches(model, 3, 16, dtype)[0]
    path = Path.begin(model)
    plan = make_method("grpo").plan(batch, None)
    policy_loss(score_of(model)(rows), batch, plan).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return path, rows, batch


@pytest.mark.parametrize("kind", [Toy, Tied])
def test_the_ends_of_the_path_are_theta_and_theta_prime_exactly(kind) -> None:
    model = kind(dtype=torch.float32)
    score = score_of(model)
    rows, _ = batches(model, 3, 16)[0]
    with torch.no_grad():
        before = score(rows)
    path, rows, _ = stepped(model, dtype=torch.float32)
    with torch.no_grad():
        after = score(rows)
    end = [p.detach().clone() for p in model.parameters()]
    assert not torch.equal(before.entropy, after.entropy)
    assert torch.equal(path.measure(score, rows, alpha=0.0).entropy, before.entropy)
    assert torch.equal(path.measure(score, rows, alpha=1.0).entropy, after.entropy)
    assert torch.equal(path.measure(score, rows, names=[]).entropy, before.entropy)
    path.measure(score, rows, alpha=0.3)
    path.jvp(score, rows, path.delta())
    path.central(score, rows, path.delta())
    for p, q in zip(model.parameters(), end, strict=True):
        assert isinstance(p, nn.Parameter) and torch.equal(p, q)


@pytest.mark.parametrize("kind", [Toy, Tied])
def test_forward_mode_equals_a_central_difference(kind) -> None:
    model = kind(dtype=torch.float64)
    path, rows, batch = stepped(model)
    delta = path.delta()
    dlogp, dentropy = path.jvp(score_of(model), rows, delta)
    ends = []
    for alpha in (1e-3, -1e-3):
        with path.moved(alpha=0.0):
            values = {n: path.start[n] + alpha * delta[n] for n in delta}
            with swapped(model, values), torch.no_grad():
                ends.append(score_of(model)(rows))
    for exact, name in ((dlogp, "logp"), (dentropy, "entropy")):
        fd = (getattr(ends[0], name) - getattr(ends[1], name)) / 2e-3
        assert (exact - fd).abs().max() <= 1e-6 * fd.abs().max()
    own = path.central(score_of(model), rows, delta)
    assert (own[1] - dentropy).abs().max() <= 1e-6 * dentropy.abs().max()


def test_frozen_parameters_are_left_out_and_tied_ones_move_together() -> None:
    model = Tied(dtype=torch.float64)
    path, rows, _ = stepped(model)
    assert set(path.start) == {"embed.weight"}
    groups = layer_groups(model)
    assert groups == {"head": ["embed.weight"], "embed": []}
    score = score_of(model)
    whole = path.measure(score, rows, alpha=1.0).entropy
    assert torch.equal(path.measure(score, rows, names=groups["head"]).entropy, whole)


def test_moving_groups_one_by_one_adds_up_to_first_order() -> None:
    model = Toy(dtype=torch.float64)
    path, rows, _ = stepped(model, lr=1e-5)
    score, delta = score_of(model), path.delta()
    base = path.measure(score, rows, alpha=0.0).entropy
    parts = sum(path.measure(score, rows, names=[n]).entropy - base for n in delta)
    whole = path.measure(score, rows).entropy - base
    assert (parts - whole).abs().max() < 1e-3 * whole.abs().max()
    split = sum(path.jvp(score, rows, {n: delta[n]})[1] for n in delta)
    exact = path.jvp(score, rows, delta)[1]
    assert (split - exact).abs().max() < 1e-12


def test_snapshots_may_live_on_another_device() -> None:
    model = Toy(dtype=torch.float64)
    here, there = Path.begin(model), Path.begin(model, "cpu")
    assert all(torch.equal(here.start[n], there.start[n]) for n in here.start)
    assert all(there.start[n].data_ptr() != p.data_ptr() for n, p in model.named_parameters())


def test_layer_groups_of_a_transformer() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    groups = layer_groups(model)
    assert list(groups) == ["embed", "layer_00", "layer_01", "layer_02", "final", "head"]
    assert groups["head"] == ["lm_head.weight"] and groups["final"] == ["model.norm.weight"]
    block = last_block(groups)
    assert "lm_head.weight" in block and "model.norm.weight" in block
    assert all("layers.2." in n for n in block if "layers" in n)
    assert sum(len(v) for v in groups.values()) == len(list(model.named_parameters()))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0." in name or name == "model.norm.weight")
    groups = layer_groups(model)
    assert groups["final"] == ["model.norm.weight"] and groups["layer_02"] == []
    assert last_block(groups) == ["model.norm.weight"]  # not the last layer that is trained


def test_attention_is_switched_for_forward_mode_and_comes_back() -> None:
    class Fake(nn.Module):
        class config:
            _attn_implementation = "flash_attention_2"

        seen: list[str] = []

        def set_attn_implementation(self, name: str) -> None:
            self.seen.append(name)

    model = Fake()
    with plain_kernels(model):
        assert model.seen == ["eager"]
    assert model.seen == ["eager", "flash_attention_2"]
