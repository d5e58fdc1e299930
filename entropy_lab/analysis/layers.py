"""Whose weights moved the entropy, and for which tokens: the tables layers and train_heldout."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.analysis import over_steps
from entropy_lab.analysis.tables import frame

_PREFIX = "layer_"
_ENDS = {"embed": -1, "final": 10**6, "head": 10**6 + 1}  # where a place without a number stands
ALL_AGES = -1


def layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table `layers` from those of the steps, without the run's name.

    The first-order change of mean entropy, G . delta, is a sum over parameters, so it splits by
    layer exactly. Shares are of the sum of absolute parts: parts of opposite sign both count.
    """
    columns = [c for c in rows.columns if c.startswith(_PREFIX)]
    data = rows[columns].apply(pd.to_numeric, errors="coerce").dropna(how="all")
    columns = [c for c in columns if len(data) and data[c].notna().all()]
    columns.sort(key=lambda c: _place(c.removeprefix(_PREFIX)))
    if not columns:
        return frame("layers", [])
    parts = data[columns].to_numpy(np.float64)
    table = {
        "layer": [c.removeprefix(_PREFIX) for c in columns],
        "steps": len(parts),
        **_banded("part", over_steps.over_steps(parts, over_steps.mean)),
        **_banded("share", over_steps.over_steps(parts, _shares)),
        "unit": over_steps.unit(len(parts)),
    }
    return frame("layers", pd.DataFrame(table))


def _place(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else _ENDS.get(name, 10**5), name)


def _shares(parts: np.ndarray) -> np.ndarray:
    size = np.abs(parts)
    whole = size.sum(axis=-1, keepdims=True)
    return np.divide(size, whole, out=np.zeros_like(size), where=whole > 0).mean(axis=-2)


def train_heldout(curves: pd.DataFrame, method: str) -> pd.DataFrame:
    """Rows of the table `train_heldout` from those of `curves`, without the run's name."""
    pairs = curves[["age", "dH_train", "dH_heldout"]].apply(pd.to_numeric, errors="coerce")
    pairs = pairs[pairs[["dH_train", "dH_heldout"]].notna().all(axis=1)]
    ages = [int(a) for a in sorted(pairs["age"].dropna().unique())]
    rows = []
    for age in [ALL_AGES, *ages]:
        part = pairs if age == ALL_AGES else pairs[pairs["age"] == age]
        if not len(part):
            continue
        values = part[["dH_train", "dH_heldout"]].to_numpy(np.float64)
        value, low, high = over_steps.over_steps(values, _compare)
        row = {"method": method, "age": age, "steps": len(part), "unit": over_steps.unit(len(part))}
        for i, name in enumerate(("train", "heldout", "difference", "ratio")):
            row |= {name: value[i], f"{name}_lo": low[i], f"{name}_hi": high[i]}
        rows.append(row)
    return frame("train_heldout", rows)


def _compare(pairs: np.ndarray) -> np.ndarray:
    """train, heldout, their difference and their ratio, of means over steps: (..., 4)."""
    train, heldout = np.moveaxis(pairs.mean(axis=-2), -1, 0)
    ratio = np.divide(train, heldout, out=np.full_like(train, np.nan), where=heldout != 0)
    return np.stack([train, heldout, train - heldout, ratio], axis=-1)


def _banded(name: str, found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), found, strict=True))
