"""The fit R = -a e^H + b of reward on entropy (arXiv 2505.22617): exponential_fit, fit_residuals.

The points are the steps of a run, raw. Steps follow one another, so they are no independent
points: no interval comes from them, only one over seeds, from refits to resampled runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.seeds import Indices, stretched
from entropy_lab.analysis.tables import frame

Array = NDArray[np.float64]

LEAST = 3  # points; two leave no residual
_FLAT = 1e-12  # a variance below this share of the second moment is rounding


def sums(entropy: Array, reward: Array) -> Array:
    """(n, x, y, xx, xy, yy) summed over points, x = e^H, y = R."""
    x, y = np.exp(entropy), reward
    return np.array([len(x), x.sum(), y.sum(), (x * x).sum(), (x * y).sum(), (y * y).sum()])


def fit(totals: Array) -> dict[str, Array]:
    """a, b, residual_sd and r2 of R = -a e^H + b by least squares; totals (..., 6) as `sums`.

    NaN below three points and where entropy does not vary; r2 also where reward does not.
    """
    n, x, y, xx, xy, yy = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        vx, vy, vxy = xx - x * x / n, yy - y * y / n, xy - x * y / n
        slope = vxy / vx
        rest = np.maximum(vy - slope * vxy, 0.0)
        out = {
            "a": -slope,
            "b": (y - slope * x) / n,
            "residual_sd": np.sqrt(rest / (n - 2)),
            "r2": np.where(vy > _FLAT * yy, 1 - rest / vy, np.nan),
        }
    good = (n >= LEAST) & (vx > _FLAT * xx)
    return {name: np.where(good, value, np.nan) for name, value in out.items()}


def exponential_fit(
    curves: pd.DataFrame, draws: Mapping[str, Indices]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(exponential_fit, fit_residuals): a fit of each run, and of each method's runs together."""
    rows: list[dict[str, Any]] = []
    residuals = []
    totals: dict[str, list[Array]] = {}
    for run, data in curves.groupby("run", sort=False):
        points = data[["step", "entropy_token_mean", "reward"]].dropna()
        entropy, reward = (points[c].to_numpy(np.float64) for c in ("entropy_token_mean", "reward"))
        method = str(data["method"].iloc[0])
        here = sums(entropy, reward)
        totals.setdefault(method, []).append(here)
        found = {name: float(value) for name, value in fit(here).items()}
        rows.append(_row("run", str(run), method, 1, len(points)) | found)
        fitted = found["b"] - found["a"] * np.exp(entropy)
        columns = {"run": run, "method": method, "step": points["step"].to_numpy()}
        columns |= {"entropy": entropy, "reward": reward}
        residuals.append(pd.DataFrame({**columns, "fitted": fitted, "residual": reward - fitted}))
    for method, parts in totals.items():
        whole = np.stack(parts)  # (seeds, 6)
        found = {name: float(value) for name, value in fit(whole.sum(axis=0)).items()}
        drawn = fit(whole[draws[method]].sum(axis=1))
        for name in ("a", "b"):
            # A replicate of runs without points has no fit and says nothing of the spread.
            replicates = np.where(np.isfinite(drawn[name]), drawn[name], found[name])
            low, high = stretched(replicates, found[name], len(parts))
            found |= {f"{name}_lo": float(low), f"{name}_hi": float(high)}
        rows.append(_row("method", method, method, len(parts), int(whole[:, 0].sum())) | found)
    table = pd.concat(residuals, ignore_index=True) if residuals else []
    return frame("exponential_fit", rows), frame("fit_residuals", table)


def _row(level: str, name: str, method: str, seeds: int, n: int) -> dict[str, Any]:
    return {"level": level, "name": name, "method": method, "seeds": seeds, "n": n}
