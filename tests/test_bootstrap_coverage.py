"""How often the 95 % intervals hold the truth, where steps differ and states repeat."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_lab.analysis.bootstrap import MANY_STEPS, draw, recentred
from entropy_lab.analysis.statistics import pearson, ratio, slope_through_origin

GROUPS, STATES, TIMES = 8, 20, 3
RHO = 0.4


def steps(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    """Sums (count, GROUPS, 10): each step has its own rho, each state stands TIMES times.

    PAIR_SUMS, then what signs and a bin of the calibration need: rows of equal sign, all rows, dH
    and rows where x is above 1.

    dH has heavy tails (Student's t with 4 degrees) and is equal in all rows of a state.
    """
    rho = np.clip(RHO + spread * rng.normal(size=(count, 1, 1)), -0.95, 0.95)
    y = rng.standard_t(4, (count, GROUPS, STATES)) / np.sqrt(2)
    x = rho * y + np.sqrt(1 - rho**2) * rng.normal(size=y.shape)
    x, y = (np.repeat(v, TIMES, axis=2) for v in (x, y))
    x = x + 0.3 * rng.normal(size=x.shape)
    one, high = np.ones_like(x), x > 1
    columns = [one, x, y, x * x, y * y, x * y, x * y > 0, one, high * y, high]
    return np.stack(columns, axis=-1).sum(axis=2)


def coverage(count: int, spread: float, replicates: int, seed: int = 0) -> dict[str, float]:
    """Share of runs of `count` steps whose interval holds what endless such steps would give."""
    rng = np.random.default_rng(seed)
    many = np.concatenate([steps(rng, 500, spread) for _ in range(40)])
    each, slopes = (f(many[..., :6].sum(axis=1)) for f in (pearson, slope_through_origin))
    whole = many.sum(axis=(0, 1))
    truth = {
        "median": np.median(each), "mean square": (each**2).mean(), "pooled": pearson(whole[:6]),
        "slope": np.median(slopes), "pooled slope": slope_through_origin(whole[:6]),
        "sign": whole[6] / whole[7], "bin": whole[8] / whole[9],
    }  # fmt: skip
    hits = dict.fromkeys(truth, 0)
    for trial in range(replicates):
        sums = steps(rng, count, spread)
        own = sums[..., :6].sum(axis=1)
        value, slope = pearson(own), slope_through_origin(own)
        draws = draw(np.full(count, GROUPS), seed=trial)
        pool = draws.pool(sums)
        within, slopes = pearson(pool[..., :6]), slope_through_origin(pool[..., :6])
        totals = draws.totals(pool)
        pooled = float(pearson(own.sum(axis=0)))
        for name, numbers in (
            ("median", draws.medians(within, value)),
            ("mean square", draws.means(within**2, value**2)),
            ("pooled", recentred(pearson(totals[..., :6]), pooled)),
            ("slope", draws.medians(slopes, slope, -np.inf, np.inf)),
            ("pooled slope", slope_through_origin(totals[..., :6])),
            ("sign", ratio(totals[:, 6], totals[:, 7])),
            ("bin", ratio(totals[:, 8], totals[:, 9])),
        ):
            low, high = draws.interval(numbers, count)
            hits[name] += low <= truth[name] <= high
    return {name: hit / replicates for name, hit in hits.items()}


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.07, 0.15])
@pytest.mark.parametrize("count", [20, 40])
def test_intervals_cover_the_truth_as_often_as_they_say(count: int, spread: float) -> None:
    for name, share in coverage(count, spread, replicates=1000).items():
        # The slope over all rows leans on the few largest rows, which 20 steps may lack.
        least = 0.92 if name == "pooled slope" else 0.93
        assert least <= share <= 0.97, (name, share)


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.97), (0.15, 0.88)])
def test_with_few_steps_intervals_are_rough(spread: float, least: float) -> None:
    """Too wide where steps are alike, up to a few per cent too narrow where they differ much."""
    assert MANY_STEPS > 8
    for name, share in coverage(8, spread, replicates=500).items():
        assert share >= least, (name, share)
