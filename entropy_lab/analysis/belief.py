"""How far a log can be believed: noise floor, ceiling of correlations, identity of influence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.analysis.bootstrap import nan_median
from entropy_lab.analysis.rows import BASE
from entropy_lab.analysis.scan import Scan

_W, _WY, _WYY = (BASE.index(name) for name in ("w", "wy", "wyy"))
NAN = float("nan")


def noise_floor(steps: pd.DataFrame) -> float:
    """Rms of dH - dH_ref over all rows of all floor steps, nats; NaN where none was measured.

    sqrt(sum_s rows_s floor_s^2 / sum_s rows_s), every step alike where rows were not logged.
    """
    if "floor" not in steps:
        return NAN
    floor = pd.to_numeric(steps["floor"], errors="coerce").to_numpy(dtype=np.float64)
    rows = np.ones_like(floor)
    if "floor_rows" in steps:
        rows = pd.to_numeric(steps["floor_rows"], errors="coerce").to_numpy(dtype=np.float64)
    good = np.isfinite(floor) & (rows > 0)
    if not good.any():
        return NAN
    return float(np.sqrt(np.average(floor[good] ** 2, weights=rows[good])))


def largest(steps: pd.DataFrame, name: str) -> float:
    """Largest value of a column of the steps; NaN where it was never measured."""
    if name not in steps:
        return NAN
    values = pd.to_numeric(steps[name], errors="coerce").dropna()
    return float(values.max()) if len(values) else NAN


def _median(steps: pd.DataFrame, name: str) -> float:
    if name not in steps:
        return NAN
    return float(pd.to_numeric(steps[name], errors="coerce").median())


def ceiling(found: Scan, floor: float) -> float:
    """Median over steps of sqrt(1 - floor^2 / var dH), 0 in a step that is all noise."""
    values = []
    for step, cells in zip(found.train.steps, found.train.cells, strict=True):
        if step >= found.first:
            w, wy, wyy = cells[:, 0, [_W, _WY, _WYY]].sum(axis=0)
            variance = wyy / w - (wy / w) ** 2
            values.append(np.sqrt(max(0.0, 1 - floor**2 / variance)) if variance > 0 else NAN)
    return float(nan_median(np.array(values), 0))


def belief(steps: pd.DataFrame, found: Scan | None) -> dict[str, float]:
    """The columns of `summary` that say how far the log can be believed; NaN where unknown."""
    out = {
        "floor": noise_floor(steps),
        "ceiling": NAN,
        "under_floor": NAN,
        "identity_error": largest(steps, "identity_error"),
        "gradient_audit": largest(steps, "gradient_audit"),
        "moved_bfloat16": _median(steps, "moved_share_bfloat16"),
    }
    if found is None or not np.isfinite(out["floor"]):
        return out
    pairs = zip(found.train.steps, found.train.cells, strict=True)
    used = [cells[:, 0].sum(axis=0) for step, cells in pairs if step >= found.first]
    out["ceiling"] = ceiling(found, out["floor"])
    out["under_floor"] = found.under_floor(np.sum(used, axis=0)) if used else NAN
    return out
