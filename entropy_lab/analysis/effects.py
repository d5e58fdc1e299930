"""What a run did, in numbers with an interval each: the table effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from entropy_lab.analysis.bootstrap import t_interval
from entropy_lab.analysis.curves import EDGE
from entropy_lab.analysis.tables import frame

_ENDS = ("entropy_token_mean", "reward", "response_length")
_MEANS = ("dH_heldout", "dH_train", "touched_share", "clip_high_frac", "clip_low_frac")
SCALAR = "method_"  # prefix of what a method says of itself


def effects(rows: pd.DataFrame) -> pd.DataFrame:
    """The table `effects` of one run, from its joined step rows (`curves.step_rows`).

    Ends: means of the first and the last five steps with a value; means: over all steps, of
    dH_heldout over those of age 0. Every interval is a 95 % t interval over the steps that were
    averaged, which follow one another, so it tells how even they are, not what another seed does.
    """
    found = []
    for name in _ENDS:
        values = _values(rows, name)
        if len(values):
            found.append(_row(name, "first", values[:EDGE]))
            found.append(_row(name, "last", values[-EDGE:]))
    scalars = sorted(str(c) for c in rows.columns if str(c).startswith(SCALAR))
    for name in (*_MEANS, *scalars):
        of_policy = name == "dH_heldout" and "age" in rows
        values = _values(rows[rows["age"] == 0] if of_policy else rows, name)
        if len(values):
            found.append(_row(name, "mean", values))
    return frame("effects", found)


def _values(rows: pd.DataFrame, name: str) -> np.ndarray:
    if name not in rows:
        return np.zeros(0)
    values = pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=np.float64)
    return values[np.isfinite(values)]


def _row(name: str, of: str, values: np.ndarray) -> dict[str, Any]:
    low, high = t_interval(values)
    return {
        "quantity": name, "of": of, "value": float(values.mean()), "value_lo": low,
        "value_hi": high, "steps": len(values),
    }  # fmt: skip
