"""What training looked like: the table curves, from metrics.jsonl and steps/."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.analysis.tables import PREDICTOR_PREFIX, QUADRANTS, TABLES, frame
from entropy_lab.errors import RunError
from entropy_lab.record import Run

WINDOW = 9  # steps of the running means
EDGE = 5  # steps of "first" and "last"
_QUADRANT_ENDINGS = tuple(f"_{name}" for name in QUADRANTS)


def step_rows(run: Run) -> pd.DataFrame:
    """metrics.jsonl joined by step with steps/; the commit log wins where both have a column."""
    metrics = run.metrics()
    try:
        steps = run.steps()
    except RunError:  # nothing of steps/ is on disk yet, or all of it is damaged
        return metrics
    extra = [c for c in steps.columns if c not in metrics.columns]
    return metrics.merge(steps[["step", *extra]], on="step", how="left")


def curves(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Rows of the table `curves`: one per optimizer step, without the run's name."""
    wanted = [c for c in TABLES["curves"] if c in rows.columns]
    data = rows[wanted + prediction_columns(rows)].apply(pd.to_numeric, errors="coerce")
    data["method"] = method
    for smooth, source in (
        ("reward_smooth", "reward"),
        ("entropy_smooth", "entropy_token_mean"),
        ("dH_smooth", "dH_train"),
    ):
        if source in data:
            data[smooth] = running_mean(data[source])
    return frame("curves", data)


def prediction_columns(rows: pd.DataFrame) -> list[str]:
    """The columns dH_pred_<name> that hold a step's mean over all of its tokens."""
    return [
        str(c)
        for c in rows.columns
        if c.startswith(PREDICTOR_PREFIX) and not c.endswith(_QUADRANT_ENDINGS)
    ]


def running_mean(values: pd.Series) -> pd.Series:
    """Mean over WINDOW rows around each row, over fewer at either end."""
    return values.rolling(WINDOW, center=True, min_periods=1).mean()


def policy_change(rows: pd.DataFrame) -> float:
    """Mean dH_heldout of the steps of age 0: what a step did to the policy's entropy."""
    if "dH_heldout" not in rows:
        return float("nan")
    change = pd.to_numeric(rows["dH_heldout"], errors="coerce")
    return float(change[rows["age"] == 0].mean() if "age" in rows else change.mean())


def edges(values: pd.Series) -> tuple[float, float]:
    """Mean of the first and of the last five steps with a value; NaN without any."""
    known = values.dropna().to_numpy(dtype=np.float64)
    if len(known) == 0:
        return float("nan"), float("nan")
    return float(known[:EDGE].mean()), float(known[-EDGE:].mean())
