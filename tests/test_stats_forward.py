"""Forward-mode derivatives of the statistics against differences, the backward, and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from entropy_lab.stats import token_stats
from entropy_lab.types import TokenStats

DIFFERENTIABLE = ("logp", "entropy")


def example(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a direction of the same shape, token ids."""
    gen = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(*shape, generator=gen, dtype=torch.float64)
    direction = torch.randn(*shape, generator=gen, dtype=torch.float64)
    token_id = torch.randint(shape[-1], shape[:-1], generator=gen)
    return logits.to(dtype), direction.to(dtype), token_id


def with_tangents(logits: Tensor, direction: Tensor, token_id: Tensor, **kw: float):
    """The statistics, and the tangents of logp and entropy."""
    with fwAD.dual_level():
        stats = token_stats(fwAD.make_dual(logits, direction), token_id, **kw)
        assert all(fwAD.unpack_dual(getattr(stats, n)).tangent is None for n in ("m0", "m1", "m2"))
        pairs = {n: fwAD.unpack_dual(getattr(stats, n)) for n in DIFFERENTIABLE}
        return stats.map(Tensor.detach), {n: pair.tangent for n, pair in pairs.items()}


@pytest.mark.parametrize("vocab, vocab_tile", [(50, 8), (50, 2048), (5003, 2048), (1, 1)])
def test_tangents_are_central_differences(vocab, vocab_tile):
    logits, direction, token_id = example(3, 4, vocab)
    kw = {"temperature": 0.7, "token_tile": 2, "vocab_tile": vocab_tile}
    _, tangent = with_tangents(logits, direction, token_id, **kw)
    step = 1e-4

    def moved(sign: float) -> TokenStats:
        return token_stats(logits + sign * step * direction, token_id, **kw)

    for name in DIFFERENTIABLE:
        want = (getattr(moved(1), name) - getattr(moved(-1), name)) / (2 * step)
        assert tangent[name].dtype == torch.float64
        error = float((tangent[name] - want).abs().max())
        assert error <= 1e-6 * float(want.abs().max().clamp(min=1e-6)), name


@pytest.mark.parametrize(
    "dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 1e-2)]
)
def test_tangents_agree_with_the_backward(dtype, rtol):
    logits, direction, token_id = example(5, 6, 4100, dtype=dtype)
    _, tangent = with_tangents(logits, direction, token_id, temperature=0.8)
    leaf = logits.clone().requires_grad_()
    stats = token_stats(leaf, token_id, 0.8)
    gen = torch.Generator().manual_seed(1)
    for name in DIFFERENTIABLE:
        up = torch.randn(5, 6, generator=gen).to(stats.logp.dtype)
        (grad,) = torch.autograd.grad((getattr(stats, name) * up).sum(), leaf, retain_graph=True)
        backward = float((grad.double() * direction.double()).sum())
        forward = float((tangent[name] * up).double().sum())
        size = float((tangent[name] * up).double().abs().sum())
        assert abs(backward - forward) <= rtol * size, name


def test_values_are_bitwise_those_without_tangents():
    logits, direction, token_id = example(4, 5, 5003, dtype=torch.float32)
    plain = token_stats(logits, token_id)
    for needs_grad in (False, True):
        dual, _ = with_tangents(logits.clone().requires_grad_(needs_grad), direction, token_id)
        for name in ("logp", "entropy", "m0", "m1", "m2"):
            assert torch.equal(getattr(dual, name), getattr(plain, name)), name


def test_tangent_rows_do_not_depend_on_neighbours_or_layout(monkeypatch):
    logits, direction, token_id = example(6, 5, 300, dtype=torch.float32)
    _, whole = with_tangents(logits, direction, token_id)
    _, one = with_tangents(logits[2:3], direction[2:3], token_id[2:3], token_tile=2)
    monkeypatch.setattr("entropy_lab.stats.reference._COPY_LIMIT", 0)
    _, view = with_tangents(logits[:, 1:], direction[:, 1:], token_id[:, 1:])
    copied = direction[:, 1:].contiguous()  # laid out otherwise than the logits
    _, relaid = with_tangents(logits[:, 1:], copied, token_id[:, 1:])
    for name in DIFFERENTIABLE:
        assert torch.equal(whole[name][2:3], one[name]), name
        assert torch.equal(whole[name][:, 1:], view[name]), name
        assert torch.equal(whole[name][:, 1:], relaid[name]), name


def test_impossible_tokens_take_no_part():
    logits, direction, token_id = example(2, 3, 9)
    token_id[:] = 0
    logits[..., 4:] = -torch.inf
    _, tangent = with_tangents(logits, direction, token_id)
    _, want = with_tangents(logits[..., :4], direction[..., :4], token_id)
    for name in DIFFERENTIABLE:
        torch.testing.assert_close(tangent[name], want[name], rtol=1e-12, atol=1e-12)


def test_through_a_model_and_torch_func():
    gen = torch.Generator().manual_seed(2)
    hidden = torch.randn(4, 8, generator=gen, dtype=torch.float64)
    head = torch.nn.Linear(8, 30, dtype=torch.float64)
    token_id = torch.randint(30, (4,), generator=gen)
    move = {n: torch.randn(p.shape, generator=gen, dtype=p.dtype) for n, p in
            head.named_parameters()}  # fmt: skip

    def entropy(params: dict[str, Tensor]) -> Tensor:
        return token_stats(torch.func.functional_call(head, params, hidden), token_id).entropy

    at = dict(head.named_parameters())
    _, tangent = torch.func.jvp(entropy, (at,), (move,))
    ends = [entropy({n: p + s * 1e-4 * move[n] for n, p in at.items()}) for s in (1, -1)]
    want = (ends[0] - ends[1]) / 2e-4
    assert float((tangent - want).detach().abs().max()) <= 1e-6 * float(want.detach().abs().max())


def test_no_tokens_and_no_tangent_are_no_error():
    logits, direction, token_id = example(0, 3, 5)
    _, tangent = with_tangents(logits, direction, token_id)
    assert tangent["entropy"].shape == (0, 3)
    logits, direction, token_id = example(2, 5)
    with fwAD.dual_level():
        fwAD.make_dual(logits, direction)
        assert fwAD.unpack_dual(token_stats(logits, token_id).logp).tangent is None


def test_forward_over_reverse_is_refused():
    logits, direction, token_id = example(2, 3, 9)
    with fwAD.dual_level():
        dual = fwAD.make_dual(logits.requires_grad_(), direction)
        total = token_stats(dual, token_id).entropy.sum()
        with pytest.raises(NotImplementedError, match="take a finite difference of their gradient"):
            total.backward()
