"""pass@k against enumeration, the source's product form and expectation; intervals that cover."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from entropy_lab.train.pass_at_k import interval, pass_at_k, pass_rows


def by_enumeration(n: int, c: int, k: int) -> Fraction:
    """The share of the subsets of k of n responses that hold one of the c right ones."""
    subsets = list(itertools.combinations(range(n), k))
    return Fraction(sum(min(s) < c for s in subsets), len(subsets))


def test_pass_at_k_is_the_share_of_subsets_with_a_right_response() -> None:
    for n in range(1, 9):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            assert pass_at_k(n, c, k) == float(by_enumeration(n, c, k)), (n, c, k)


@pytest.mark.parametrize(("n", "k"), [(200, 100), (1024, 512), (5000, 64)])
def test_pass_at_k_agrees_with_the_product_form_for_many_responses(n: int, k: int) -> None:
    """The form of the source's section 2.1, a product of k factors, in float64."""
    for c in (0, 1, 2, n // 10, n // 2, n - 1, n):
        missed = np.prod(1.0 - c / np.arange(n - k + 1, n + 1)) if n - c >= k else 0.0
        assert pass_at_k(n, c, k) == pytest.approx(1.0 - missed, rel=1e-11, abs=1e-15)
    assert pass_at_k(n, 1, k) == k / n  # one right response is among k of n


def test_pass_at_k_is_unbiased_where_plugging_in_the_mean_is_not() -> None:
    """Its expectation over c ~ Binomial(8, 0.2) is 1 - 0.8^4; that of 1 - (1 - c/8)^4 is not."""
    chance = [math.comb(8, c) * 0.2**c * 0.8 ** (8 - c) for c in range(9)]
    expected = sum(p * pass_at_k(8, c, 4) for c, p in enumerate(chance))
    assert expected == pytest.approx(1 - 0.8**4, rel=1e-12)
    assert sum(p * (1 - (1 - c / 8) ** 4) for c, p in enumerate(chance)) < expected - 0.02


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"got n = {n}, c = {c}, k = {k}"):
        pass_at_k(n, c, k)


def test_rows_are_means_over_problems_with_their_standard_error() -> None:
    """Three problems with 0, 1 and 4 right of 4, worked by hand: pass@2 is 0, 1/2 and 1."""
    rows = pass_rows([0, 1, 4], samples=4, ks=[1, 2, 4])
    assert [r["k"] for r in rows] == [1, 2, 4] and {r["n"] for r in rows} == {3}
    means = [(0 + 1 / 4 + 1) / 3, (0 + 1 / 2 + 1) / 3, (0 + 1 + 1) / 3]
    assert [r["pass_at_k"] for r in rows] == pytest.approx(means, rel=1e-15)
    assert rows[1]["pass_at_k_se"] == pytest.approx(0.5 / 3**0.5, rel=1e-15)
    assert {r["avg_at_k"] for r in rows} == {5 / 12}
    [one] = pass_rows([1], samples=9, ks=[7])
    assert one["pass_at_k"] == pytest.approx(7 / 9)  # the right one is among 7 of 9
    assert one["pass_at_k_se"] is one["pass_at_k_lo"] is one["avg_at_k_hi"] is None


def test_the_interval_over_problems_is_near_the_normal_one_and_covers() -> None:
    """For 400 problems within 5 % of 1.96 standard errors; over 300 draws of 25 it covers 95 %."""
    rng = np.random.default_rng(1)
    values = rng.beta(2, 3, 400)
    low, high = interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05 * 2 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * 2 * half)
    assert interval(values) == (low, high) != interval(values, seed=1)
    hits = 0
    for _ in range(300):
        low, high = interval(rng.beta(2, 3, 25))
        hits += low <= 0.4 <= high
    assert 0.91 <= hits / 300 <= 0.98  # four standard errors of the simulation are 0.05
    assert interval(np.zeros(9)) == interval(np.ones(1)) == (None, None)
