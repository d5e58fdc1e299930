"""What a method that aims at an entropy change asked for and got: targets and target_sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from entropy_lab.analysis import over_steps
from entropy_lab.analysis.tables import frame

_LOGGED = {"predicted": "method_predicted", "dose": "method_dose", "feasible": "method_feasible"}
KINDS = {1.0: "feasible", 0.0: "out of reach"}


def targets(info: Mapping[str, Any], rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(targets, target_sums) from run.json and the rows of the steps, without the run's name.

    Empty for a run whose method has no target of a step's change of entropy.
    """
    settings = info.get("method")
    target = settings.get("target") if isinstance(settings, Mapping) else None
    if not isinstance(target, (int, float)) or not {*_LOGGED.values(), "dH_train"} <= set(rows):
        return frame("targets", []), frame("target_sums", [])
    data = pd.DataFrame({"step": rows["step"], "target": float(target)})
    for name, column in {**_LOGGED, "realised": "dH_train"}.items():
        data[name] = pd.to_numeric(rows[column], errors="coerce")
    data = data[data[["predicted", "realised", "feasible"]].notna().all(axis=1)]
    found = [
        _sums(kind, data[data["feasible"] == value]) for value, kind in KINDS.items()
        if (data["feasible"] == value).any()
    ]  # fmt: skip
    return frame("targets", data), frame("target_sums", found)


def _sums(kind: str, data: pd.DataFrame) -> dict[str, Any]:
    values = data[["predicted", "realised", "target"]].to_numpy(np.float64)
    values = np.column_stack([values[:, :2], values[:, 1] - values[:, 2]])
    found = over_steps.over_steps(values, over_steps.mean)
    row: dict[str, Any] = {
        "kind": kind, "steps": len(data), "target": float(data["target"].iloc[0]),
        "spread": float(values[:, 2].std(ddof=1)) if len(data) > 1 else float("nan"),
        "unit": over_steps.unit(len(data)),
    }  # fmt: skip
    for i, name in enumerate(("predicted", "realised", "missed")):
        row |= {f"{name}{end}": v[i] for end, v in zip(("", "_lo", "_hi"), found, strict=True)}
    return row
