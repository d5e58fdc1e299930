"""Correlations from sums, ranks, tails and the bootstrap against scipy, numpy and theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from entropy_lab.analysis.bootstrap import MANY_STEPS, draw, interval, nan_median, recentred, unit
from entropy_lab.analysis.statistics import (
    DistinctCount,
    TailQuantile,
    bins_of,
    centred,
    mean_squared_error,
    one_of_each,
    pearson,
    quantile_edges,
    ranks,
    slope_through_origin,
    spearman,
    top_rows,
    without,
)


def sums_of(x: np.ndarray, y: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    w = np.ones_like(x) if w is None else w
    return np.array([w.sum(), w @ x, w @ y, w @ (x * x), w @ (y * y), w @ (x * y)])


def test_pearson_of_sums_is_scipys_pearson() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 1.0, 500)
    y = 0.4 * x + rng.normal(size=500)
    assert pearson(sums_of(x, y)) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)


def test_a_weight_of_two_equals_the_row_twice() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 50))
    w = rng.integers(1, 4, 50).astype(float)
    twice = [np.repeat(v, w.astype(int)) for v in (x, y)]
    for statistic in (pearson, slope_through_origin, mean_squared_error):
        assert statistic(sums_of(x, y, w)) == pytest.approx(float(statistic(sums_of(*twice))))


def test_a_constant_prediction_has_no_correlation() -> None:
    y = np.random.default_rng(2).normal(size=100)
    assert np.isnan(pearson(sums_of(np.full(100, 1e-3), y)))
    assert np.isnan(pearson(np.zeros(6)))
    assert np.isnan(slope_through_origin(sums_of(np.zeros(100), y)))


def test_centred_sums_are_those_of_deviations() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(5, 1, 40), rng.normal(-2, 1, 40)
    expected = sums_of(x - x.mean(), y - y.mean())
    np.testing.assert_allclose(centred(sums_of(x, y)), expected, atol=1e-10)


def test_sums_without_a_part_are_those_of_the_other_rows() -> None:
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(2, 300))
    rest = without(sums_of(x, y), sums_of(x[:30], y[:30]))
    assert pearson(rest) == pytest.approx(stats.pearsonr(x[30:], y[30:])[0])
    y[30:] = 0  # nothing but rounding is left of dH, and rounding has no correlation
    assert np.isnan(pearson(without(sums_of(x, y), sums_of(x[:30], y[:30]))))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60))
def test_ranks_share_ties_as_scipy_does(values: list[int]) -> None:
    array = np.array(values, dtype=np.float32)
    np.testing.assert_allclose(ranks(array), stats.rankdata(array))


def test_spearman_is_scipys_with_many_ties() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=400)
    x = np.where(rng.random(400) < 0.6, 0.0, y + rng.normal(size=400))
    assert spearman([x], y)[0] == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    assert np.isnan(spearman([np.zeros(400)], y)[0])


@pytest.mark.parametrize("rows", [1, 2, 7, 99, 100, 101, 5000])
@pytest.mark.parametrize("q", [0.5, 0.99])
def test_tail_quantile_is_numpys_quantile(rows: int, q: float) -> None:
    values = np.random.default_rng(rows).normal(size=rows)
    tail = TailQuantile(q, rows + 50)  # an upper bound of the rows is enough
    for block in np.array_split(values, 7):
        tail.add(block)
    assert tail.value() == pytest.approx(np.quantile(values, q), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60))
def test_top_rows_are_the_first_of_a_stable_sort(values: list[int]) -> None:
    array = np.array(values, dtype=np.float32)
    expected = np.argsort(-np.abs(array), kind="stable")[: max(1, len(array) // 4)]
    assert sorted(np.flatnonzero(top_rows(array, 0.25))) == sorted(expected)


@pytest.mark.parametrize("stride", [1, 3, 48])
def test_one_row_of_each_stride_is_taken_wherever_the_stream_is_cut(stride: int) -> None:
    taken, seen = [], 0
    for block, rows in enumerate((500, 1, 47, 48, 1004)):
        at = one_of_each(stride, rows, seen, block)
        assert (at < rows).all()
        taken += list(seen + at)
        seen += rows
    places, counts = np.unique(np.array(taken) // stride, return_counts=True)
    assert counts.max() == 1
    # A place is lost where its stride ends in the next block; here at most once a block.
    assert len(places) >= seen / stride - 5
    if stride == 1:
        assert taken == list(range(seen))


def test_rows_that_repeat_with_a_period_are_sampled_evenly() -> None:
    """Responses of 64 tokens and every 16th row: a fixed place would see four positions alone."""
    position = np.arange(64 * 1000) % 64
    seen = np.bincount(position[one_of_each(16, len(position), 0, 3)], minlength=64)
    assert seen.min() > 0.5 * seen.mean()
    again = one_of_each(16, 1000, 0, 3)
    np.testing.assert_array_equal(again, one_of_each(16, 1000, 0, 3))
    assert list(again) != list(one_of_each(16, 1000, 0, 4))


def test_edges_are_quantiles_and_a_value_that_fills_a_bin_stands_alone() -> None:
    rng = np.random.default_rng(12)
    at = np.arange(0.1, 1, 0.1)
    even = rng.normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(quantile_edges(even, at), np.quantile(even, at).astype("f4"))
    idle = np.where(rng.random(1000) < 0.35, 0, even).astype(np.float32)
    place = bins_of(idle, quantile_edges(idle, at))
    assert len(np.unique(place[idle == 0])) == 1
    assert not np.isin(place[idle != 0], place[idle == 0]).any()
    assert len(quantile_edges(np.zeros(0, np.float32), at)) == 0
    assert set(bins_of(np.zeros(5), quantile_edges(np.zeros(5, np.float32), at))) == {1}


def test_bins_hold_their_lower_edge_as_searchsorted_has_it() -> None:
    values = np.array([-2, -1, -0.5, 0, 0.5, 1, 3], np.float32)
    edges = (-1.0, 0.0, 1.0)
    np.testing.assert_array_equal(
        bins_of(values, edges), np.searchsorted(edges, values, side="right")
    )


def test_distinct_count_is_exact_below_its_limit_and_close_above() -> None:
    hashes = np.random.default_rng(5).integers(-(2**63), 2**63 - 1, 20000)
    exact, sampled = DistinctCount(), DistinctCount(limit=1000)
    for block in np.array_split(np.concatenate([hashes, hashes[::2]]), 9):
        exact.add(block)
        sampled.add(block)
    assert exact.value() == len(np.unique(hashes))
    assert sampled.value() == pytest.approx(20000, rel=0.15)


def test_nan_median_leaves_nan_out() -> None:
    values = np.array([[1.0, np.nan, 3.0, 8.0], [np.nan] * 4, [4.0, 2.0, 1.0, 3.0]])
    np.testing.assert_allclose(nan_median(values, 1), [3.0, np.nan, 2.5])


def group_sums(rng: np.random.Generator, groups: int, rows: int, rho: float) -> np.ndarray:
    out = []
    for _ in range(groups):
        y = rng.normal(size=rows)
        x = rho * y + np.sqrt(1 - rho**2) * rng.normal(size=rows)
        out.append(sums_of(x, y))
    return np.array(out)[None]  # (1 step, groups, 6)


def test_one_steps_interval_is_fishers() -> None:
    """Independent rows: the group bootstrap of one step is the Fisher interval of its rows."""
    rng = np.random.default_rng(6)
    sums = group_sums(rng, groups=200, rows=10, rho=0.5)
    value = pearson(sums.sum(axis=1))
    draws = draw(np.array([200]), replicates=4000)
    low, high = interval(draws.medians(pearson(draws.pool(sums)), value))
    z, half = np.arctanh(value[0]), 1.96 / np.sqrt(2000 - 3)
    assert low == pytest.approx(np.tanh(z - half), abs=0.015)
    assert high == pytest.approx(np.tanh(z + half), abs=0.015)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(100):
        sums = np.concatenate([group_sums(rng, 10, 12, 0.4) for _ in range(12)])
        value = pearson(sums.sum(axis=1))
        draws = draw(np.full(12, 10), seed=trial, replicates=300)
        low, high = interval(draws.medians(pearson(draws.pool(sums)), value))
        covered += low <= 0.4 <= high
    assert covered >= 90


def test_steps_that_differ_widen_the_interval() -> None:
    """A spread between steps is seen although each step alone is known precisely."""
    rng = np.random.default_rng(8)
    rhos = rng.uniform(0.1, 0.7, 20)
    spread = np.concatenate([group_sums(rng, 10, 400, rho) for rho in rhos])
    equal = np.concatenate([group_sums(rng, 10, 400, 0.4) for _ in rhos])
    widths = []
    for sums in (spread, equal):
        draws = draw(np.full(20, 10))
        value = pearson(sums.sum(axis=1))
        low, high = interval(draws.medians(pearson(draws.pool(sums)), value))
        widths.append(high - low)
    assert widths[0] > 4 * widths[1]


def test_draws_differ_by_seed_and_agree_for_equal_seeds() -> None:
    groups = np.array([3, 0, 5])
    one, same, other = draw(groups, 1), draw(groups, 1), draw(groups, 2)
    np.testing.assert_array_equal(one.chosen, same.chosen)
    np.testing.assert_array_equal(one.counts, same.counts)
    assert (one.chosen != other.chosen).any()
    assert (one.counts.sum(axis=2) == groups[:, None]).all()  # each resample has as many groups
    many = draw(np.arange(1, MANY_STEPS + 1))
    assert many.steps_only and many.counts.shape[1] == 1  # groups stay as they are
    np.testing.assert_array_equal(many.counts[:, 0].sum(axis=1), np.arange(1, MANY_STEPS + 1))


def test_an_interval_over_few_units_is_as_wide_as_students() -> None:
    """The mean of n values: the t interval, which the plain percentiles fall short of."""
    values = np.random.default_rng(10).normal(size=12)
    draws = draw(np.ones(12, np.int64), replicates=20000)
    means = values[draws.chosen].mean(axis=1)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    np.testing.assert_allclose(draws.interval(means, 12), expected, atol=0.06)
    assert np.ptp(interval(means)) < 0.92 * np.ptp(draws.interval(means, 12))
    assert unit(MANY_STEPS) == "bootstrap over steps"
    assert unit(3, False) == "two-stage bootstrap: steps, then responses"


def test_totals_add_up_the_chosen_resamples() -> None:
    draws = draw(np.array([4, 2]), replicates=5)
    pool = draws.pool(np.random.default_rng(9).normal(size=(2, 4, 3)))
    flat = pool.reshape(-1, 3)
    expected = np.array([flat[row].sum(axis=0) for row in draws.chosen])
    np.testing.assert_allclose(draws.totals(pool), expected)


def test_recentring_moves_resamples_to_their_value_and_stays_a_correlation() -> None:
    moved = recentred(np.array([[0.5, 0.7, np.nan]]), np.array([[0.4]]))
    np.testing.assert_allclose(moved, [[0.3, 0.5, np.nan]])
    assert recentred(np.array([0.9, 1.0]), 1.0).max() == 1.0


def test_an_interval_of_equal_replicates_is_unknown() -> None:
    assert all(np.isnan(interval(np.full(10, 0.3))))
    assert all(np.isnan(interval(np.full(10, np.nan))))
