"""Token statistics against float64 autograd, on easy and on hard rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from entropy_lab.stats import entropy_slopes, token_stats
from entropy_lab.types import TokenStats

NAMES = ("logp", "entropy", "m0", "m1", "m2")
BARS = {"logp": 5e-6, "entropy": 5e-6, "m0": 2e-6, "m1": 2e-6, "m2": 2e-6}


def float64_stats(logits: Tensor, token_id: Tensor, temperature: float = 1.0) -> TokenStats:
    log_pi = torch.log_softmax(logits.double() / temperature, -1)
    pi = log_pi.exp()
    log_pi = torch.where(pi > 0, log_pi, 0.0)
    logp = torch.log_softmax(logits.double() / temperature, -1)
    return TokenStats(
        logp=logp.gather(-1, token_id[..., None]).squeeze(-1),
        entropy=-(pi * log_pi).sum(-1),
        m0=(pi * pi).sum(-1),
        m1=(pi * pi * log_pi).sum(-1),
        m2=(pi * pi * log_pi * log_pi).sum(-1),
    )


def assert_within_bars(got: TokenStats, want: TokenStats) -> None:
    for name in NAMES:
        a, b = getattr(got, name).double(), getattr(want, name)
        assert torch.isfinite(a).all(), name
        scale = 1.0 if name in ("logp", "entropy", "m0") else float(b.abs().max().clamp(min=1e-3))
        assert float((a - b).abs().max()) <= BARS[name] * scale, name


def sample(*shape: int, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=gen) * scale
    return logits, torch.randint(shape[-1], shape[:-1], generator=gen)


@pytest.mark.parametrize("vocab", [1, 2, 16, 64, 2048, 2049, 5000, 151_936])
def test_five_statistics_meet_the_bars(vocab):
    logits, token_id = sample(3, 5, vocab)
    got = token_stats(logits, token_id)
    assert got.logp.shape == (3, 5) and got.logp.dtype == torch.float32
    assert_within_bars(got, float64_stats(logits, token_id))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_accumulated_in_float32(dtype):
    logits, token_id = sample(4, 7, 3000)
    logits = logits.to(dtype)
    got = token_stats(logits, token_id, 0.7)
    assert got.entropy.dtype == torch.float32
    assert_within_bars(got, float64_stats(logits, token_id, 0.7))


def test_float64_stays_float64():
    logits, token_id = sample(4, 7, 5000)
    got, want = token_stats(logits.double(), token_id), float64_stats(logits, token_id)
    for name in NAMES:
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=0, atol=1e-12)


def test_temperature_divides_the_logits():
    logits, token_id = sample(6, 50)
    got = token_stats(logits, token_id, 0.6)
    assert_within_bars(got, float64_stats(logits, token_id, 0.6))
    assert float((got.entropy - token_stats(logits, token_id).entropy).abs().max()) > 0.1


@pytest.mark.parametrize("shift", [40.0, -40.0])
def test_a_shift_of_all_logits_does_not_move_entropy(shift):
    logits, token_id = sample(8, 20_000)
    moved = token_stats(logits + shift, token_id).entropy - token_stats(logits, token_id).entropy
    assert float(moved.abs().max()) <= 1e-5


def hard_logits() -> tuple[Tensor, Tensor]:
    """-inf entries, a one-hot row, all-negative rows, whole tiles of -inf first and last."""
    logits, token_id = sample(6, 37)
    logits[0, 3:9] = -torch.inf
    logits[1] = -torch.inf
    logits[1, 20] = 2.0
    logits[2] -= 500.0
    logits[3, :8] = -torch.inf
    logits[4, 24:] = -torch.inf
    logits[5] *= 100.0
    token_id[:] = torch.tensor([0, 20, 5, 12, 9, int(logits[5].argmax())])
    return logits, token_id


@pytest.mark.parametrize("vocab_tile", [1, 8, 36, 37, 2048])
def test_hard_rows_meet_the_bars_without_nan(vocab_tile):
    logits, token_id = hard_logits()
    got = token_stats(logits, token_id, vocab_tile=vocab_tile, token_tile=4)
    assert_within_bars(got, float64_stats(logits, token_id))
    assert float(got.entropy[1]) == 0.0 and float(got.logp[1]) == 0.0


@pytest.mark.parametrize("vocab_tile", [1, 8, 37, 2048])
def test_hard_rows_have_finite_exact_gradients(vocab_tile):
    logits, token_id = hard_logits()
    leaf = logits.clone().requires_grad_()
    got = token_stats(leaf, token_id, 0.8, vocab_tile=vocab_tile)
    weight = torch.linspace(-1, 1, 6)
    ((got.logp * weight).sum() + (got.entropy * weight.flip(0)).sum()).backward()
    finite = logits.clone().double().masked_fill(logits == -torch.inf, -1e5).requires_grad_()
    want = float64_stats(finite, token_id, 0.8)
    ((want.logp * weight).sum() + (want.entropy * weight.flip(0)).sum()).backward()
    assert leaf.grad is not None and finite.grad is not None
    torch.testing.assert_close(leaf.grad.double(), finite.grad, rtol=0, atol=2e-6)
    assert float(leaf.grad[logits == -torch.inf].abs().max()) == 0.0


def test_an_impossible_token_has_logp_minus_infinity_and_no_nan_elsewhere():
    logits, _ = sample(1, 10)
    logits[0, 4] = -torch.inf
    got = token_stats(logits, torch.tensor([4]))
    assert float(got.logp) == -torch.inf and torch.isfinite(got.entropy).all()
    surprise, _, _ = entropy_slopes(got)
    assert float(surprise) == 0.0


@pytest.mark.parametrize("vocab_tile", [4, 2048])
def test_gradcheck(vocab_tile):
    logits, token_id = sample(2, 3, 11)

    def run(z: Tensor) -> tuple[Tensor, Tensor]:
        stats = token_stats(z, token_id, 0.7, token_tile=2, vocab_tile=vocab_tile)
        return stats.logp, stats.entropy

    assert torch.autograd.gradcheck(run, (logits.double().requires_grad_(),))


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("which", ["logp", "entropy", "both"])
def test_gradient_matches_float64_autograd(dtype, atol, which):
    logits, token_id = sample(5, 4, 4100)
    logits = logits.to(dtype)
    up_logp, up_entropy = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))

    def total(stats: TokenStats) -> Tensor:
        parts = {"logp": stats.logp * up_logp, "entropy": stats.entropy * up_entropy}
        return sum((parts[n].sum() for n in parts if which in (n, "both")), torch.zeros(()))

    leaf, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
    total(token_stats(leaf, token_id)).backward()
    total(float64_stats(wide, token_id)).backward()
    assert leaf.grad is not None and leaf.grad.dtype == dtype and wide.grad is not None
    torch.testing.assert_close(leaf.grad.double(), wide.grad, rtol=0, atol=atol)


def test_moments_carry_no_gradient():
    logits, token_id = sample(2, 9)
    stats = token_stats(logits.requires_grad_(), token_id)
    assert stats.logp.requires_grad and stats.entropy.requires_grad
    assert not any(getattr(stats, n).requires_grad for n in ("m0", "m1", "m2"))


@pytest.mark.parametrize("vocab", [17, 5003])
def test_rows_do_not_depend_on_neighbours_layout_or_grad_mode(vocab):
    logits, token_id = sample(9, 8, vocab)
    whole = token_stats(logits.clone().requires_grad_(), token_id)
    with torch.no_grad():
        pieces = [token_stats(logits[i : i + 1], token_id[i : i + 1]) for i in range(9)]
        singles = [token_stats(logits[3, t], token_id[3, t]) for t in range(8)]
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        mixed = token_stats(logits[order], token_id[order], token_tile=5)
        shifted = token_stats(logits[:, 1:-1], token_id[:, 1:-1], token_tile=3)
    for name in NAMES:
        value = getattr(whole, name).detach()
        assert torch.equal(value, torch.cat([getattr(p, name) for p in pieces])), name
        assert torch.equal(value[3], torch.stack([getattr(s, name) for s in singles])), name
        assert torch.equal(value[order], getattr(mixed, name)), name
        assert torch.equal(value[:, 1:-1], getattr(shifted, name)), name


@pytest.mark.parametrize("vocab", [17, 5003])
def test_gradient_rows_do_not_depend_on_neighbours(vocab):
    logits, token_id = sample(6, 4, vocab)

    def grad(rows: slice) -> Tensor:
        leaf = logits[rows].clone().requires_grad_()
        stats = token_stats(leaf, token_id[rows])
        (stats.logp.sum() + 0.3 * stats.entropy.sum()).backward()
        assert leaf.grad is not None
        return leaf.grad

    split = torch.cat([grad(slice(0, 1)), grad(slice(1, 4)), grad(slice(4, 6))])
    assert torch.equal(grad(slice(0, 6)), split)


def test_large_strided_logits_are_walked_without_a_copy(monkeypatch):
    logits, token_id = sample(3, 5, 40)
    want = token_stats(logits[:, :-1].contiguous(), token_id[:, :-1])
    monkeypatch.setattr("entropy_lab.stats.reference._COPY_LIMIT", 0)
    leaf = logits.clone().requires_grad_()
    got = token_stats(leaf[:, :-1], token_id[:, :-1], token_tile=2, vocab_tile=64)
    got.entropy.sum().backward()
    assert torch.equal(got.entropy, want.entropy) and torch.equal(got.m2, want.m2)
    assert leaf.grad is not None and float(leaf.grad[:, -1].abs().max()) == 0.0


class LargestTensor(TorchDispatchMode):
    """The largest fresh storage that any operation returns, in bytes."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


def test_extra_memory_is_a_few_tiles_whatever_the_number_of_tokens():
    largest = []
    for tokens in (300, 900):
        logits, token_id = sample(tokens, 6000)
        with LargestTensor(logits, token_id) as mode:
            token_stats(logits, token_id)
        largest.append(mode.bytes)
    assert largest[0] == largest[1] == 64 * 2048 * 4  # at most six of these live: 3 MB


def test_padding_that_holds_nan_gets_zero_gradient_when_unused():
    logits, token_id = sample(4, 12)
    logits[2] = torch.nan
    logits[3] = -torch.inf
    leaf = logits.clone().requires_grad_()
    stats = token_stats(leaf, token_id)
    used = torch.tensor([True, True, False, False])
    torch.where(used, stats.logp + stats.entropy, torch.zeros(())).sum().backward()
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all()
    assert float(leaf.grad[2:].abs().max()) == 0.0 and float(leaf.grad[:2].abs().max()) > 0


def test_no_tokens_is_no_error():
    logits = torch.zeros(0, 3, 5, requires_grad=True)
    stats = token_stats(logits, torch.zeros(0, 3, dtype=torch.long))
    assert stats.m2.shape == (0, 3)
    stats.logp.sum().backward()
    assert logits.grad is not None and logits.grad.shape == (0, 3, 5)


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"temperature": 0.0}, ValueError, "temperature is 0.0: pass the sampling temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan"),
        ({"token_id": torch.zeros(3).long()}, ValueError, r"shape \(2, 5\) but token_id has \(3,"),
        ({"token_id": torch.tensor([0, 5])}, ValueError, r"spans \[0, 5\].*\[0, 5\)"),
        ({"token_id": torch.tensor([-100, 1])}, ValueError, r"\[-100, 1\].*leave it out with"),
        ({"token_id": torch.zeros(2)}, TypeError, r"must be integers.*token_id.long\(\)"),
        ({"logits": torch.zeros(2, 5).long()}, TypeError, r"floating point.*logits.float\(\)"),
        ({"vocab_tile": 0}, ValueError, "vocab_tile is 0"),
    ],
)
def test_errors_name_the_value_and_the_remedy(change, error, text):
    arguments = {"logits": torch.zeros(2, 5), "token_id": torch.zeros(2).long()} | change
    with pytest.raises(error, match=text):
        token_stats(**arguments)
