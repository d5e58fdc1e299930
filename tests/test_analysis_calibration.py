"""Calibration, slopes, signs and top rows of each form against plain numbers of the same rows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from entropy_lab.analysis import analyze
from entropy_lab.analysis.bins import QUANTILES
from entropy_lab.analysis.tables import FIRST_STEP
from synthetic import write_run

Blocks = list[dict[str, np.ndarray]]
Planted = tuple[Blocks, dict[str, pd.DataFrame]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Training rows of 19 steps that count, and the tables of the run."""
    path = tmp_path_factory.mktemp("runs") / "planted"
    blocks = write_run(path, steps=24, groups=8, group_size=4, length=12, tail=0.01, seed=3)
    used = [b for b in blocks if b["flags"][0] == 0 and b["step"][0] >= FIRST_STEP]
    return used, analyze([path]).tables


def one(tables: dict[str, pd.DataFrame], stratum: str, predictor: str, scope: str) -> pd.Series:
    data = tables["validation"]
    at = (data["stratum"] == stratum) & (data["predictor"] == predictor) & (data["scope"] == scope)
    (row,) = (r for _, r in data[at].iterrows())
    return row


def ends(replicates: np.ndarray) -> np.ndarray:
    """Where both ends of an interval over 19 steps may lie: 1000 replicates know them roughly."""
    tail = stats.norm.cdf(np.sqrt(19 / 18) * stats.t.ppf(0.025, 18))
    return np.quantile(replicates, [tail / 3, 3 * tail, 1 - 3 * tail, 1 - tail / 3])


@pytest.mark.parametrize("name", ["cov", "softmax_state"])
def test_calibration_bins_are_numpys_quantiles_and_means(planted, name: str) -> None:
    blocks, tables = planted
    x, y = (np.concatenate([b[k] for b in blocks]) for k in (f"dH_pred_{name}", "dH"))
    table = tables["calibration"].query("predictor == @name")
    edges = np.quantile(x, QUANTILES).astype(np.float32)
    place = np.searchsorted(edges, x, side="right")
    assert list(table["bin"]) == list(range(1, len(edges) + 2))
    np.testing.assert_allclose(table["lo"], [-np.inf, *edges])
    np.testing.assert_allclose(table["hi"], [*edges, np.inf])
    means = pd.DataFrame({"x": x.astype(float), "y": y.astype(float)}).groupby(place).mean()
    assert list(table["n"]) == list(np.bincount(place))
    np.testing.assert_allclose(table["predicted"], means["x"], rtol=1e-6)
    np.testing.assert_allclose(table["dH"], means["y"], rtol=1e-6)
    step = np.repeat(np.arange(19), [len(b["dH"]) for b in blocks])
    inside = place == 9
    sums = [np.bincount(step[inside], v, 19) for v in (y[inside].astype(float), None)]
    drawn = np.random.default_rng(2).integers(0, 19, (20000, 19))
    around = ends(sums[0][drawn].sum(1) / sums[1][drawn].sum(1))
    row = table.iloc[9]
    assert around[0] <= row["dH_lo"] <= around[1] < around[2] <= row["dH_hi"] <= around[3]
    assert row["steps"] == (sums[1] > 0).sum()
    # The table's overall mean is that of all rows: no row is lost or counted twice.
    assert (table["n"] * table["dH"]).sum() == pytest.approx(y.astype(float).sum(), rel=1e-6)


def test_slopes_have_an_interval_that_resamples_steps(planted) -> None:
    """Of 19 steps, against a plain bootstrap of the median and of the pooled slope."""
    blocks, tables = planted
    sums = []
    for b in blocks:
        x, y = (b[k].astype(np.float64) for k in ("dH_pred_steer", "dH"))
        sums.append([x @ y, x @ x])
    xy, xx = np.array(sums).T
    drawn = np.random.default_rng(5).integers(0, 19, (20000, 19))
    within = np.median((xy / xx)[drawn], axis=1)
    pooled = xy[drawn].sum(1) / xx[drawn].sum(1)
    for scope, slopes in (("within_step", within), ("pooled", pooled)):
        row = one(tables, "all", "steer", scope)
        around = ends(slopes)
        assert around[0] <= row["slope_lo"] <= around[1], scope
        assert around[2] <= row["slope_hi"] <= around[3], scope
        assert row["slope_lo"] < row["slope"] < row["slope_hi"]


def test_signs_by_quadrant_are_plain_counts_with_an_interval_over_steps(planted) -> None:
    blocks, tables = planted
    for name, positive, likely in (("pos_likely", True, True), ("neg_unlikely", False, False)):
        hits, pairs = [], []
        for b in blocks:
            keep = (b["logp"] > -b["entropy"]) == likely
            keep &= (b["advantage"] > 0) if positive else (b["advantage"] < 0)
            x, y = b["dH_pred_softmax"][keep], b["dH"][keep]
            hits.append((np.sign(x) == np.sign(y))[x * y.astype(float) != 0].sum())
            pairs.append((x * y.astype(float) != 0).sum())
        row = one(tables, name, "softmax", "within_step")
        assert row["sign"] == pytest.approx(sum(hits) / sum(pairs)), name
        drawn = np.random.default_rng(1).integers(0, 19, (20000, 19))
        shares = np.array(hits)[drawn].sum(1) / np.array(pairs)[drawn].sum(1)
        around = ends(shares)
        assert around[0] <= row["sign_lo"] <= around[1] < around[2] <= row["sign_hi"] <= around[3]


def test_the_top_rows_of_a_form_hold_a_plain_share_of_the_change(planted) -> None:
    blocks, tables = planted
    held, most = [], []
    for b in blocks:
        size, top = np.abs(b["dH"].astype(float)), int(0.01 * len(b["dH"]))
        held.append(size[np.argsort(-np.abs(b["dH_pred_steer"]))[:top]].sum() / size.sum())
        most.append(np.sort(size)[-top:].sum() / size.sum())
    row = one(tables, "all", "steer", "within_step")
    assert row["capture"] == pytest.approx(np.median(held), rel=1e-6)
    assert row["oracle"] == pytest.approx(np.median(most), rel=1e-6)
    assert row["capture_lo"] < row["capture"] < row["capture_hi"] < row["oracle"]
    assert math.isnan(one(tables, "all", "steer", "pooled")["capture"])
