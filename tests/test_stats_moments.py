"""Sums that merge: vocabulary shards in any order give the statistics of the whole row."""

from __future__ import annotations

from functools import reduce
from itertools import permutations

import pytest
import torch
from torch import Tensor

from entropy_lab.stats import Moments
from test_stats import NAMES, assert_within_bars, float64_stats, hard_logits, sample

CUTS = ([9, 28], [1, 36], [20, 21], [12, 24])


def shards(logits: Tensor, cuts: list[int]) -> list[Tensor]:
    return list(logits.tensor_split(cuts, dim=-1))


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shards_merge_in_any_order(cuts, dtype):
    logits, token_id = hard_logits()
    logits = logits.to(dtype)
    z_a = logits.gather(1, token_id[:, None]).squeeze(1).to(Moments.of(logits).s0.dtype)
    for order in permutations(shards(logits, cuts)):
        merged = reduce(Moments.merge, map(Moments.of, order))
        assert_within_bars(merged.stats(z_a), float64_stats(logits, token_id))


def test_merging_is_associative_and_commutative_up_to_rounding():
    logits, _ = sample(50, 900)
    a, b, c = (Moments.of(part.double()) for part in shards(logits, [300, 420]))
    left, right, turned = a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(b).merge(a)
    whole = Moments.of(logits.double())
    for name in ("peak", "s0", "s1", "t0", "t1", "t2"):
        for other in (right, turned, whole):
            got = getattr(other, name)
            torch.testing.assert_close(got, getattr(left, name), rtol=1e-12, atol=1e-300)


def test_a_known_peak_only_saves_a_rescaling():
    logits, token_id = sample(30, 600)
    z_a = logits.gather(1, token_id[:, None]).squeeze(1)
    first, second = Moments.of(logits[:, :200]), logits[:, 200:]
    known, free = first.merge(Moments.of(second, first.peak)), first.merge(Moments.of(second))
    assert torch.equal(known.peak, logits.amax(1)) and torch.equal(free.peak, known.peak)
    for name in NAMES:
        got, want = getattr(known.stats(z_a), name), getattr(free.stats(z_a), name)
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-7)


def test_a_shard_of_impossible_tokens_adds_nothing():
    logits, token_id = sample(8, 64)
    z_a = logits.gather(1, token_id[:, None]).squeeze(1)
    whole = Moments.of(logits)
    nothing = Moments.of(torch.full((8, 5), -torch.inf))
    for merged in (whole.merge(nothing), nothing.merge(whole)):
        for name in NAMES:
            assert torch.equal(getattr(merged.stats(z_a), name), getattr(whole.stats(z_a), name))


def test_sums_by_hand():
    z = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)
    got = Moments.of(z)
    e1, e2 = torch.e**-1, torch.e**-2
    want = {
        "peak": 1.0,
        "s0": 1 + e1 + e2,
        "s1": -e1 - 2 * e2,
        "t0": 1 + e1**2 + e2**2,
        "t1": -(e1**2) - 2 * e2**2,
        "t2": e1**2 + 4 * e2**2,
    }
    for name, value in want.items():
        assert float(getattr(got, name)) == pytest.approx(value, rel=1e-15), name
