"""Several runs side by side: the table comparison."""

from __future__ import annotations

import pandas as pd

from entropy_lab.analysis.bootstrap import t_interval
from entropy_lab.analysis.curves import edges
from entropy_lab.analysis.tables import frame

METRICS = {
    "entropy": "entropy_token_mean",
    "reward": "reward",
    "dH_train": "dH_train",
    "dH_heldout": "dH_heldout",
}


def comparison(curves: pd.DataFrame) -> pd.DataFrame:
    """First, last and mean of each metric, per run and per method.

    The interval of a method's change is the t interval over its runs (n >= 2): runs are the unit
    of a claim about a method, so a single run has none.
    """
    rows = []
    for run, data in curves.groupby("run", sort=False):
        for metric, column in METRICS.items():
            if column not in data or data[column].notna().sum() == 0:
                continue
            first, last = edges(data[column])
            rows.append(
                {
                    "level": "run",
                    "name": run,
                    "method": data["method"].iloc[0],
                    "runs": 1,
                    "steps": len(data),
                    "metric": metric,
                    "first": first,
                    "last": last,
                    "mean": data[column].mean(),
                    "change": last - first,
                }
            )
    per_run = pd.DataFrame(rows)
    if per_run.empty:
        return frame("comparison", [])
    for (method, metric), data in per_run.groupby(["method", "metric"], sort=False):
        low, high = t_interval(data["change"].to_numpy())
        rows.append(
            {
                "level": "method",
                "name": method,
                "method": method,
                "runs": len(data),
                "steps": data["steps"].min(),
                "metric": metric,
                **data[["first", "last", "mean", "change"]].mean().to_dict(),
                "change_lo": low,
                "change_hi": high,
            }
        )
    return frame("comparison", rows)
