"""Statistics over seeds: numbers worked by hand, scipy, and how often intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from entropy_lab.analysis.seeds import (
    improvement_interval,
    iqm,
    iqm_over_seeds,
    mean_over_seeds,
    probability_of_improvement,
    stratified,
    stretched,
)


def test_the_iqm_is_the_mean_of_the_middle_half() -> None:
    assert iqm(np.array([9.0, 1, 2, 100])) == pytest.approx((2 + 9) / 2)  # 1 and 100 dropped
    assert iqm(np.array([1.0, 2, 6])) == pytest.approx(3)  # floor(3 / 4) = 0 dropped
    values = np.random.default_rng(0).normal(size=(4, 15, 3))
    np.testing.assert_allclose(iqm(values, axis=1), stats.trim_mean(values, 0.25, axis=1))
    assert math.isnan(iqm(np.empty(0)))


def test_the_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    x, y = np.array([1.0, 2, 3]), np.array([2.0, 0])
    # (1,2) no, (1,0) yes, (2,2) tie, (2,0) yes, (3,2) yes, (3,0) yes: 4.5 of 6
    assert probability_of_improvement(x, y) == pytest.approx(0.75)
    u = stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement(x, y) == pytest.approx(u / 6)
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)
    assert math.isnan(probability_of_improvement(x, np.empty(0)))


def test_the_score_interval_solves_its_equation_and_bounds_complete_separation() -> None:
    z = special.ndtri(0.975)
    for p, n, m in ((0.5, 5, 5), (0.8, 5, 3), (1.0, 5, 5)):
        low, high = improvement_interval(p, n, m)
        for q in {low, high} - {1.0}:
            q1, q2 = q / (2 - q), 2 * q * q / (1 + q)  # Hanley and McNeil's Q1 and Q2
            more = (n + m) / 2 - 1
            variance = (q * (1 - q) + more * (q1 - q * q) + more * (q2 - q * q)) / (n * m)
            expected = z * math.sqrt(variance) + 1 / (2 * n * m)
            assert abs(p - q) == pytest.approx(expected, abs=2e-4)
    low, high = improvement_interval(1.0, 5, 5)
    assert high == 1 and 0.6 < low < 0.65
    mirrored = improvement_interval(0.0, 5, 5)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    assert np.isnan(improvement_interval(0.5, 1, 5)).all()
    assert np.isnan(improvement_interval(float("nan"), 5, 5)).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7])
def test_an_interval_is_clear_of_an_even_chance_where_the_exact_test_is(n: int) -> None:
    """Every order of n against n distinct values: Mann and Whitney's exact two-sided p."""
    for u in range(n * n + 1):
        # Values of x that beat u of the n * n pairs.
        beaten = [u // n + (i < u % n) for i in range(n)]
        x, y = np.array([b - 0.5 for b in beaten]), np.arange(n, dtype=float)
        x = x + np.linspace(0, 0.1, n)
        assert probability_of_improvement(x, y) == pytest.approx(u / n**2)
        p = stats.mannwhitneyu(x, y, method="exact").pvalue
        low, high = improvement_interval(u / n**2, n, n)
        assert (low > 0.5 or high < 0.5) == (p <= 0.05), (u, p, low, high)


def test_methods_are_drawn_apart_with_replacement_and_equal_seeds_agree() -> None:
    draws = stratified({"a": 5, "b": 5, "c": 2}, seed=1, replicates=4000)
    assert draws["a"].shape == (4000, 5) and draws["c"].shape == (4000, 2)
    assert (draws["a"] != draws["b"]).any()
    shared = np.corrcoef(draws["a"].mean(axis=1), draws["b"].mean(axis=1))[0, 1]
    assert abs(shared) < 0.06  # 4 / sqrt(4000)
    share = np.bincount(draws["a"].ravel(), minlength=5) / draws["a"].size
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    repeats = (np.sort(draws["a"])[:, 1:] == np.sort(draws["a"])[:, :-1]).any(axis=1)
    assert repeats.mean() == pytest.approx(1 - math.factorial(5) / 5**5, abs=0.02)
    again = stratified({"a": 5, "b": 5, "c": 2}, seed=1, replicates=4000)
    assert all((draws[name] == again[name]).all() for name in draws)
    assert (stratified({"a": 5}, seed=2)["a"] != stratified({"a": 5}, seed=1)["a"]).any()
    assert (stratified({"a": 5}, seed=1)["a"] == stratified({"a": 5, "z": 9}, seed=1)["a"]).all()


def test_the_stretched_interval_of_a_mean_is_the_t_interval() -> None:
    """Many normal seeds, and replicates of the exact spread of resampled means."""
    rng = np.random.default_rng(3)
    for n in (4, 8, 30):
        values = rng.normal(size=n)
        spread = values.std() / math.sqrt(n)  # of a resampled mean: the sd with divisor n
        replicates = values.mean() + spread * special.ndtri((np.arange(20000) + 0.5) / 20000)
        low, high = stretched(replicates, values.mean(), n)
        expected = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
        np.testing.assert_allclose((low, high), expected, rtol=2e-3, atol=1e-3)
    assert np.isnan(stretched(np.zeros(10), np.float64(0), 1)).all()


def test_a_seed_without_a_value_is_left_out_of_the_mean_and_of_n() -> None:
    nan = float("nan")
    values = np.array([[1.0, 1, nan, 4], [3.0, nan, nan, 4], [5.0, 2, 7, 4]])
    mean, low, high, count = mean_over_seeds(values, stratified({"a": 3})["a"])
    np.testing.assert_allclose(mean, [3, 1.5, 7, 4])
    assert list(count) == [3, 2, 1, 3]
    assert np.isfinite(low[:2]).all() and np.isnan(low[2]) and np.isnan(high[2])
    assert low[3] == high[3] == 4  # seeds that agree have no spread
    assert low[0] < 1 and high[0] > 5  # wider than the range of three seeds
    none = mean_over_seeds(np.full((2, 1), nan), stratified({"a": 2})["a"])
    assert np.isnan(none[0]) and np.isnan(none[1]) and none[3] == 0


def test_the_iqm_over_seeds_draws_whole_rows() -> None:
    draws = stratified({"a": 4}, seed=5)["a"]
    rows = np.repeat(np.array([[0.0], [1], [2], [3]]), 5, axis=1)
    value, low, high = iqm_over_seeds(rows, draws)
    assert value == pytest.approx(1.5)
    # Five equal values a row say no more than one: the interval is that of four values.
    one = iqm_over_seeds(rows[:, :1], draws)
    assert (low, high) == pytest.approx(one[1:], abs=0.75)
    assert high - low > 0.8 * (one[2] - one[1])
    assert np.isnan(iqm_over_seeds(rows[:1], stratified({"a": 1})["a"])[1:]).all()
    assert np.isnan(iqm_over_seeds(np.empty((3, 0)), draws)).all()
    rows[0, 0] = np.nan
    assert np.isnan(iqm_over_seeds(rows, draws)).all()


def coverage(n: int, trials: int, skewed: bool) -> tuple[float, float]:
    """Share of trials whose interval holds the truth: of the mean, of the IQM of 5 steps each."""
    rng = np.random.default_rng(n)
    draws = stratified({"a": n}, seed=n, replicates=1000)["a"]
    hits = np.zeros(2)
    for _ in range(trials):
        seeds = rng.exponential(size=(n, 1)) - 1 if skewed else rng.normal(size=(n, 1))
        mean, low, high, _ = mean_over_seeds(seeds, draws)
        hits[0] += low[0] <= 0 <= high[0]
        _, below, above = iqm_over_seeds(seeds + 0.3 * rng.normal(size=(n, 5)), draws)
        hits[1] += below <= 0 <= above
    return tuple(hits / trials)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_intervals_over_a_few_seeds_hold_the_truth_about_as_often_as_they_say(n: int) -> None:
    mean, middle = coverage(n, 400, skewed=False)
    assert 0.90 <= mean <= 0.98 and 0.89 <= middle <= 0.99, (mean, middle)


def improvement_coverage(n: int, truth: float, trials: int) -> float:
    rng = np.random.default_rng(n)
    shift = special.ndtri(truth) * math.sqrt(2)
    hits = 0
    for _ in range(trials):
        p = probability_of_improvement(shift + rng.normal(size=n), rng.normal(size=n))
        low, high = improvement_interval(p, n, n)
        hits += low <= truth <= high
    return hits / trials


@pytest.mark.parametrize("truth", [0.5, 0.75, 0.9, 0.97])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_of_an_improvement_holds_it_also_near_certainty(n: int, truth: float) -> None:
    assert improvement_coverage(n, truth, 400) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_coverage_in_detail(n: int) -> None:
    mean, middle = coverage(n, 3000, skewed=False)
    assert 0.92 <= mean <= 0.965 and 0.91 <= middle <= 0.975
    skewed, _ = coverage(n, 3000, skewed=True)
    assert 0.84 <= skewed <= 0.94  # exponential seeds: too narrow, by up to ten per cent
    for truth in (0.5, 0.75, 0.9, 0.97):
        assert improvement_coverage(n, truth, 3000) >= 0.94
