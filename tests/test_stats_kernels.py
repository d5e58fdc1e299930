"""The Triton kernels against float64, in the interpreter or on a GPU.

Without a GPU, conftest.py sets TRITON_INTERPRET=1 and the kernels run on CPU tensors.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from entropy_lab.stats import Moments, kernels, linear_token_stats, token_stats
from test_stats import NAMES, assert_within_bars, float64_stats, hard_logits, sample
from test_stats_linear import head

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def row_stats(logits: Tensor, token_id: Tensor, temperature: float = 1.0):
    total, z_a = kernels.row_moments(logits.to(DEVICE), token_id.to(DEVICE), temperature)
    return total.stats(z_a).map(Tensor.cpu)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the public functions use the kernels on whatever device this is."""
    for module in ("reference", "linear"):
        monkeypatch.setattr(f"entropy_lab.stats.{module}._kernels", lambda *tensors: kernels)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("vocab", [1, 37, 4096, 9001])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rows_meet_the_bars(dtype, vocab, temperature):
    logits, token_id = sample(4, vocab)
    got = row_stats(logits.to(dtype), token_id, temperature)
    assert_within_bars(got, float64_stats(logits.to(dtype), token_id, temperature))


def test_hard_rows_meet_the_bars_without_nan():
    logits, token_id = hard_logits()
    got = row_stats(logits, token_id)
    assert_within_bars(got, float64_stats(logits, token_id))
    assert float(got.entropy[1]) == 0.0 and float(got.logp[1]) == 0.0


def test_a_block_of_impossible_tokens_comes_first_or_last():
    logits, token_id = sample(2, 9001)
    logits[0, :5000] = -torch.inf
    logits[1, 4000:] = -torch.inf
    token_id[:] = torch.tensor([6000, 3])
    assert_within_bars(row_stats(logits, token_id), float64_stats(logits, token_id))


def test_nan_is_not_dropped():
    logits, token_id = sample(2, 50)
    logits[0, 3] = torch.nan
    got = row_stats(logits, token_id)
    assert got.entropy.isnan().tolist() == [True, False]


@pytest.mark.parametrize("shift", [40.0, -40.0])
def test_a_shift_of_all_logits_does_not_move_entropy(shift):
    logits, token_id = sample(3, 9001)
    moved = row_stats(logits + shift, token_id).entropy - row_stats(logits, token_id).entropy
    assert float(moved.abs().max()) <= 1e-5


@pytest.mark.parametrize("cuts", [[4096], [1, 5000], [8999]])
def test_folding_tiles_is_folding_the_row(cuts):
    logits, token_id = sample(3, 9001)
    logits[0, :5000] = -torch.inf
    token_id[0] = 7000
    state, first = None, 0
    for tile in logits.tensor_split(cuts, dim=1):
        tile = tile.contiguous().to(DEVICE)
        state = kernels.fold(state, tile, token_id.to(DEVICE), first, 0.7)
        first += tile.shape[1]
    assert state is not None
    got = Moments(*state[:6]).stats(state[6]).map(Tensor.cpu)
    assert_within_bars(got, float64_stats(logits, token_id, 0.7))


def test_folded_moments_merge_with_those_of_torch():
    logits, token_id = sample(3, 600)
    half, z_a = kernels.row_moments(logits[:, :200].to(DEVICE), token_id.clamp(max=199).to(DEVICE))
    merged = half.merge(Moments.of(logits[:, 200:].to(DEVICE)))
    got = merged.stats(z_a).map(Tensor.cpu)
    assert_within_bars(got, float64_stats(logits, token_id.clamp(max=199)))


def test_rows_do_not_depend_on_neighbours_or_stride():
    logits, token_id = sample(6, 5003)
    whole, part = row_stats(logits, token_id), row_stats(logits[4:5].clone(), token_id[4:5])
    wide = torch.cat([logits, logits], 1).to(DEVICE)[:, :5003]
    total, z_a = kernels.row_moments(wide, token_id.to(DEVICE))
    strided = total.stats(z_a).map(Tensor.cpu)
    for name in NAMES:
        assert torch.equal(getattr(whole, name)[4:5], getattr(part, name)), name
        assert torch.equal(getattr(whole, name), getattr(strided, name)), name


def leaves_grad(stats, *leaves: Tensor) -> list[Tensor]:
    up = torch.linspace(-1, 1, stats.logp.numel(), device=DEVICE).view_as(stats.logp)
    total = (stats.logp * up + stats.entropy * up.flip(0)).sum()
    return [g.double().cpu() for g in torch.autograd.grad(total, leaves)]


# The interpreter cuts off where a GPU rounds to bfloat16.
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_token_stats_through_the_kernels(everywhere, monkeypatch, dtype, atol):
    monkeypatch.setattr("entropy_lab.stats.reference._COPY_LIMIT", 0)
    logits, token_id = sample(3, 5, 5003)
    logits = logits.to(dtype)
    leaf = logits.clone().to(DEVICE).requires_grad_()
    exact = logits.double().to(DEVICE).requires_grad_()
    ids = token_id[:, 1:].to(DEVICE)
    got, want = token_stats(leaf[:, 1:], ids, 0.8), float64_stats(exact[:, 1:], ids, 0.8)
    assert_within_bars(got.detach(), want.detach())
    [a], [b] = leaves_grad(got, leaf), leaves_grad(want, exact)
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_hard_rows_have_finite_gradients(everywhere):
    logits, token_id = hard_logits()
    leaf = logits.clone().to(DEVICE).requires_grad_()
    [got] = leaves_grad(token_stats(leaf, token_id.to(DEVICE)), leaf)
    finite = logits.double().masked_fill(logits == -torch.inf, -1e5).to(DEVICE).requires_grad_()
    [want] = leaves_grad(float64_stats(finite, token_id.to(DEVICE)), finite)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_linear_statistics_through_the_kernels(everywhere, temperature):
    hidden, weight, token_id = head(21, width=16, vocab=700)
    leaves = hidden.to(DEVICE).requires_grad_(), weight.to(DEVICE).requires_grad_()
    tiles = {"token_tile": 8, "vocab_tile": 128}
    got = linear_token_stats(*leaves, token_id.to(DEVICE), temperature, **tiles)
    exact = hidden.double().to(DEVICE).requires_grad_(), weight.double().to(DEVICE).requires_grad_()
    want = float64_stats(exact[0] @ exact[1].T, token_id.to(DEVICE), temperature)
    assert_within_bars(got.detach(), want.detach())
    for a, b in zip(leaves_grad(got, *leaves), leaves_grad(want, *exact), strict=True):
        assert float((a - b).abs().max()) <= 5e-6 * float(b.abs().max())


def test_no_tokens_is_no_error(everywhere):
    logits = torch.zeros(0, 3, 5, device=DEVICE, requires_grad=True)
    stats = token_stats(logits, torch.zeros(0, 3, dtype=torch.long, device=DEVICE))
    stats.logp.sum().backward()
    assert stats.m2.shape == (0, 3) and logits.grad is not None


def test_a_cpu_and_float64_do_without_kernels():
    from entropy_lab.stats.backend import _kernels

    assert _kernels(torch.zeros(2)) is None
    assert _kernels(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) is None


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from entropy_lab.stats import kernels

POINTERS = {"ids": "*i64", "state": "*fp32", "known": "*fp32", "temperature": "fp32"}
options = {k: v for k, v in kernels._LAUNCH.items() if k != "BLOCK"}
for kernel in (kernels._fold_kernel, kernels._grad_kernel):
    for dtype in ("*fp32", "*bf16"):
        for fresh in (True, False):
            given = {"FRESH": fresh, "UNIT": fresh, "BLOCK": kernels._BLOCK}
            fixed = {name: given[name] for name in kernel.arg_names if name in given}
            types = {"logits": dtype, "out": dtype, **POINTERS, **dict.fromkeys(given, "constexpr")}
            signature = {name: types.get(name, "i32") for name in kernel.arg_names}
            source = ASTSource(kernel, signature=signature, constexprs=fixed)
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            assert ".local" not in made.asm["ptx"], "registers spill to memory"
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here():
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_on_a_gpu_the_public_functions_meet_the_bars(dtype):
    logits, token_id = sample(40, 151_936)
    logits = logits.to(dtype)
    got = token_stats(logits.cuda(), token_id.cuda())
    assert_within_bars(got.map(Tensor.cpu), float64_stats(logits, token_id))
    hidden, weight, token_id = head(40, width=256, vocab=20_000, dtype=dtype)
    got = linear_token_stats(hidden.cuda(), weight.cuda(), token_id.cuda())
    want = float64_stats(hidden.double() @ weight.double().T, token_id)
    assert_within_bars(got.map(Tensor.cpu), want)
