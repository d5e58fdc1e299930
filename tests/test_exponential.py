"""The fit R = -a e^H + b, against numpy and numbers made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from entropy_lab.analysis.exponential import exponential_fit, fit, sums
from entropy_lab.analysis.seeds import stratified


def curves(**runs: tuple[str, np.ndarray, np.ndarray]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {"run": run, "method": method, "step": range(len(h)),
             "entropy_token_mean": h, "reward": r}
        )
        for run, (method, h, r) in runs.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_an_exact_relation_is_found_without_residual() -> None:
    entropy = np.array([1.2, 0.8, 0.5, 0.1])
    found = fit(sums(entropy, 0.9 - 0.2 * np.exp(entropy)))
    assert found["a"] == pytest.approx(0.2) and found["b"] == pytest.approx(0.9)
    assert found["residual_sd"] == pytest.approx(0, abs=1e-7) and found["r2"] == pytest.approx(1)


def test_the_fit_is_least_squares_on_e_to_the_entropy() -> None:
    rng = np.random.default_rng(0)
    entropy = rng.uniform(0.1, 1, 50)
    reward = 0.8 - 0.15 * np.exp(entropy) + 0.05 * rng.normal(size=50)
    found = fit(sums(entropy, reward))
    x = np.exp(entropy)
    slope, intercept = np.polyfit(x, reward, 1)
    residual = reward - intercept - slope * x
    assert found["a"] == pytest.approx(-slope) and found["b"] == pytest.approx(intercept)
    assert found["residual_sd"] == pytest.approx(residual.std(ddof=0) * np.sqrt(50 / 48))
    assert found["r2"] == pytest.approx(np.corrcoef(x, reward)[0, 1] ** 2)
    # Sums of parts are the sums of the whole.
    parts = sums(entropy[:20], reward[:20]) + sums(entropy[20:], reward[20:])
    assert fit(parts)["a"] == pytest.approx(found["a"])


def test_too_few_points_or_a_constant_entropy_give_no_fit() -> None:
    short = fit(sums(np.array([0.1, 0.5]), np.array([0.3, 0.2])))
    flat = fit(sums(np.full(9, 0.7), np.linspace(0, 1, 9)))
    assert all(np.isnan(v) for found in (short, flat) for v in found.values())
    level = fit(sums(np.linspace(0, 1, 9), np.full(9, 0.5)))
    assert level["a"] == pytest.approx(0, abs=1e-12) and np.isnan(level["r2"])


def test_runs_and_methods_have_fits_and_runs_have_residuals() -> None:
    rng = np.random.default_rng(1)
    runs = {}
    for i, a in enumerate((0.1, 0.2, 0.3)):
        entropy = rng.uniform(0.1, 1, 40)
        runs[f"r{i}"] = ("grpo", entropy, 1 - a * np.exp(entropy) + 0.01 * rng.normal(size=40))
    runs["s"] = ("steer", entropy, 0.5 + 0 * entropy)
    runs["s"][2][3] = np.nan  # a step without reward is no point
    draws = stratified({"grpo": 3, "steer": 1})
    table, residuals = exponential_fit(curves(**runs), draws)
    rows = table.set_index(["level", "name"])
    assert rows.loc[("run", "r1"), "a"] == pytest.approx(0.2, abs=0.01)
    assert rows.loc[("run", "s"), "n"] == 39
    pooled = rows.loc[("method", "grpo")]
    h, r = (np.concatenate([runs[f"r{i}"][k] for i in range(3)]) for k in (1, 2))
    assert pooled["a"] == pytest.approx(-np.polyfit(np.exp(h), r, 1)[0])
    assert pooled["n"] == 120 and pooled["seeds"] == 3
    assert pooled["a_lo"] < 0.1 and pooled["a_hi"] > 0.3  # three seeds that differ this much
    assert np.isnan(rows.loc[("method", "steer"), "a_lo"])
    own = residuals[residuals["run"] == "r2"]
    assert len(own) == 40 and own["residual"].mean() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(own["fitted"] + own["residual"], own["reward"])
    sd = np.sqrt((own["residual"] ** 2).sum() / 38)
    assert rows.loc[("run", "r2"), "residual_sd"] == pytest.approx(sd)
