"""Statistics from hidden states and head against statistics of the whole logits in float64."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from entropy_lab.stats import linear_token_stats, token_stats
from test_stats import NAMES, LargestTensor, assert_within_bars, float64_stats

TILES = {"token_tile": 8, "vocab_tile": 64}


def head(
    *shape: int, width: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (*shape, width), weight (vocab, width), token ids; logits of spread about 3."""
    gen = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, width, generator=gen)
    weight = 3 * torch.randn(vocab, width, generator=gen) / width**0.5
    token_id = torch.randint(vocab, shape, generator=gen)
    return hidden.to(dtype), weight.to(dtype), token_id


@pytest.mark.parametrize("vocab, tiles", [(1, {}), (150, TILES), (64, TILES), (5003, {})])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_five_statistics_meet_the_bars(vocab, tiles, temperature):
    hidden, weight, token_id = head(3, 7, width=24, vocab=vocab)
    got = linear_token_stats(hidden, weight, token_id, temperature, **tiles)
    assert got.entropy.shape == (3, 7) and got.entropy.dtype == torch.float32
    want = float64_stats(hidden.double() @ weight.double().T, token_id, temperature)
    assert_within_bars(got, want)


def test_the_head_of_a_15b_model_meets_the_bars():
    hidden, weight, token_id = head(5, width=896, vocab=151_936)
    want = float64_stats(hidden.double() @ weight.double().T, token_id)
    assert_within_bars(linear_token_stats(hidden, weight, token_id), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
    hidden, weight, token_id = head(40, width=64, vocab=3000, dtype=dtype)
    got = linear_token_stats(hidden, weight, token_id)
    assert got.logp.dtype == torch.float32
    assert_within_bars(got, float64_stats(hidden.double() @ weight.double().T, token_id))
    rounded = float64_stats(hidden @ weight.T, token_id)
    assert float((rounded.entropy - got.entropy).abs().max()) > 1e-3  # what it protects from


def grads(make, *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    stats = make(*leaves)
    up = torch.linspace(-1, 1, stats.logp.numel(), dtype=stats.logp.dtype).view_as(stats.logp)
    return list(torch.autograd.grad((stats.logp * up + stats.entropy * up.flip(0)).sum(), leaves))


def test_gradcheck():
    hidden, weight, token_id = head(2, 3, width=4, vocab=11, dtype=torch.float64)

    def run(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        stats = linear_token_stats(h, w, token_id, 0.7, token_tile=4, vocab_tile=3)
        return stats.logp, stats.entropy

    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 3e-6), (torch.bfloat16, 4e-3)])
def test_gradients_match_float64_autograd(dtype, rtol):
    hidden, weight, token_id = head(5, 6, width=32, vocab=700, dtype=dtype)

    def tiled(h: Tensor, w: Tensor):
        return linear_token_stats(h, w, token_id, 0.8, **TILES)

    def whole(h: Tensor, w: Tensor):
        return float64_stats(h @ w.T, token_id, 0.8)

    want = grads(whole, hidden.double(), weight.double())
    for got, exact in zip(grads(tiled, hidden, weight), want, strict=True):
        assert got.dtype == dtype
        assert float((got.double() - exact).abs().max()) <= rtol * float(exact.abs().max())


def test_gradients_are_summed_over_tiles_in_float32():
    hidden, weight, token_id = head(400, width=8, vocab=40, dtype=torch.bfloat16)

    def tiled(h: Tensor, w: Tensor):
        return linear_token_stats(h, w, token_id, token_tile=2, vocab_tile=2)

    def whole(h: Tensor, w: Tensor):
        return float64_stats(h @ w.T, token_id)

    want = grads(whole, hidden.double(), weight.double())
    for got, exact in zip(grads(tiled, hidden, weight), want, strict=True):
        # One rounding to bfloat16, of up to 2^-8 of the value, and none before it.
        excess = (got.double() - exact).abs() - 2**-8 * exact.abs()
        assert float(excess.max()) <= 1e-5 * float(exact.abs().max())


def test_only_what_is_asked_for_gets_a_gradient():
    hidden, weight, token_id = head(6, width=8, vocab=50)
    for h_needs, w_needs in ((True, False), (False, True)):
        h, w = hidden.clone().requires_grad_(h_needs), weight.clone().requires_grad_(w_needs)
        stats = linear_token_stats(h, w, token_id)
        assert not any(getattr(stats, n).requires_grad for n in ("m0", "m1", "m2"))
        stats.entropy.sum().backward()
        assert (h.grad is not None) == h_needs and (w.grad is not None) == w_needs


@pytest.mark.parametrize("move", ["hidden", "weight", "both"])
def test_tangents_are_those_of_the_whole_logits(move):
    hidden, weight, token_id = head(5, 4, width=16, vocab=150, dtype=torch.float64)
    to_h, to_w, _ = head(5, 4, width=16, vocab=150, dtype=torch.float64, seed=1)
    with fwAD.dual_level():
        h = fwAD.make_dual(hidden, to_h) if move != "weight" else hidden
        w = fwAD.make_dual(weight, to_w) if move != "hidden" else weight
        tiled = linear_token_stats(h, w, token_id, 0.7, **TILES)
        whole = token_stats(h @ w.T, token_id, 0.7)
        for name in ("logp", "entropy"):
            got, want = (fwAD.unpack_dual(getattr(s, name)).tangent for s in (tiled, whole))
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_forward_over_reverse_is_refused():
    hidden, weight, token_id = head(5, width=8, vocab=20)
    with fwAD.dual_level():
        dual = fwAD.make_dual(hidden.requires_grad_(), torch.ones_like(hidden))
        total = linear_token_stats(dual, weight, token_id).entropy.sum()
        with pytest.raises(NotImplementedError, match="take a finite difference of their"):
            total.backward()


def test_rows_do_not_depend_on_neighbours():
    hidden, weight, token_id = head(30, width=24, vocab=700)
    whole = linear_token_stats(hidden, weight, token_id)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    mixed = linear_token_stats(hidden[order], weight, token_id[order])
    one = linear_token_stats(hidden[17], weight, token_id[17])
    many = linear_token_stats(hidden.repeat(20, 1), weight, token_id.repeat(20))
    for name in NAMES:
        value = getattr(whole, name)
        assert torch.equal(value[order], getattr(mixed, name)), name
        assert torch.equal(value[17], getattr(one, name)), name
        assert torch.equal(value.repeat(20), getattr(many, name)), name


def test_extra_memory_is_one_tile_whatever_the_number_of_tokens():
    largest = []
    for tokens in (300, 900):
        hidden, weight, token_id = head(tokens, width=32, vocab=6000)
        with LargestTensor(hidden, weight, token_id) as mode:
            linear_token_stats(hidden, weight, token_id)
        largest.append(mode.bytes)
    assert largest[0] == largest[1] == 256 * 2048 * 4


def test_backward_holds_no_logits_either():
    hidden, weight, token_id = head(600, width=32, vocab=6000)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    total = linear_token_stats(*leaves, token_id).entropy.sum()
    with LargestTensor(*leaves, token_id) as mode:
        total.backward()
    assert mode.bytes == 256 * 2048 * 4


def test_padding_that_holds_nan_spoils_nothing():
    hidden, weight, token_id = head(6, width=8, vocab=40)
    hidden[4:] = torch.nan
    used = torch.arange(6) < 4

    def total(h: Tensor, w: Tensor, rows: slice) -> list[Tensor]:
        h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
        stats = linear_token_stats(h, w, token_id[rows])
        kept = torch.where(used[rows], stats.logp + stats.entropy, torch.zeros(()))
        return list(torch.autograd.grad(kept.sum(), (h, w)))

    got, want = total(hidden, weight, slice(6)), total(hidden[:4], weight, slice(4))
    assert torch.equal(got[0][:4], want[0]) and float(got[0][4:].abs().max()) == 0.0
    assert torch.equal(got[1], want[1])


def test_no_tokens_is_no_error():
    hidden, weight, token_id = head(0, 3, width=4, vocab=9)
    stats = linear_token_stats(hidden.requires_grad_(), weight.requires_grad_(), token_id)
    assert stats.m2.shape == (0, 3)
    stats.logp.sum().backward()
    assert weight.grad is not None and float(weight.grad.abs().max()) == 0.0


COMPILED = """
import torch
from entropy_lab.stats import linear_token_stats
from test_stats import assert_within_bars, float64_stats
from test_stats_linear import head

torch.set_num_threads(1)
hidden, weight, token_id = head(20, width=16, vocab=384)
got = linear_token_stats(hidden, weight, token_id, token_tile=8, vocab_tile=128, compile=True)
assert_within_bars(got, float64_stats(hidden.double() @ weight.double().T, token_id))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_sums_meet_the_bars():
    # A process of its own: the compiler's workers and caches outlive what they compiled.
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"temperature": -1.0}, ValueError, "temperature is -1.0: pass the sampling temperature"),
        ({"token_id": torch.tensor([0, 9])}, ValueError, r"spans \[0, 9\].*\[0, 9\)"),
        ({"token_id": torch.zeros(3).long()}, ValueError, r"\(2, 4\), \(9, 4\), \(3,\)\): they"),
        ({"weight": torch.zeros(9, 5)}, ValueError, r"be \(..., D\), \(V, D\) and \(...\)"),
        ({"weight": torch.zeros(9)}, ValueError, r"must be \(..., D\), \(V, D\)"),
        ({"weight": torch.zeros(9, 4).long()}, TypeError, "weight must be floating point"),
        ({"token_id": torch.zeros(2)}, TypeError, r"must be integers.*token_id.long\(\)"),
        ({"token_tile": 0}, ValueError, "token_tile is 0"),
    ],
)
def test_errors_name_the_value_and_the_remedy(change, error, text):
    arguments = {
        "hidden": torch.zeros(2, 4),
        "weight": torch.zeros(9, 4),
        "token_id": torch.zeros(2).long(),
    }
    with pytest.raises(error, match=text):
        linear_token_stats(**arguments | change)
