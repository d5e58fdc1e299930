"""The objects of `analyze --json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from entropy_lab.analysis.tables import records

Tables = Mapping[str, pd.DataFrame]

# Tables of a comparison whose rows stand in the object as they are.
_WHOLE = ("methods", "equal_levels", "exponential_fit", "drift_final", "pass_at_k")


def as_json(tables: Tables, runs: Sequence[str]) -> dict[str, Any]:
    """The object of one run, or of a comparison: {runs: [...], methods: [...], ...}.

    Of several runs: `runs` holds the object of each, with its method, and the tables over methods
    and seeds follow, a row as an object. NaN becomes None.
    """
    objects = [_run(tables, run) for run in runs]
    if len(objects) == 1:
        return objects[0]
    methods = dict(zip(tables["summary"]["run"], tables["summary"]["method"], strict=True))
    objects = [{"run": o["run"], "method": methods[o["run"]], **o} for o in objects]
    rows = {name: [_plain(row) for row in records(tables[name])] for name in _WHOLE}
    return {"runs": objects, **rows}


def _run(tables: Tables, run: str) -> dict[str, Any]:
    (row,) = records(tables["summary"], run=run)
    overall = records(tables["validation"], run=run, stratum="all")
    pooled = {r["predictor"]: r["pcc"] for r in overall if r["scope"] == "pooled"}
    predictors = {}
    for one in overall:
        if one["scope"] == "within_step":
            predictors[one["predictor"]] = {
                **{k: int(one[k]) for k in ("n", "steps")},
                **{k: _number(one[k]) for k in ("pcc", "pcc_lo", "pcc_hi")},
                "pcc_pooled": _number(pooled[one["predictor"]]),
                **{k: _number(one[k]) for k in ("pcc_trim99", "srcc", "sign", "slope", "mse")},
            }
    return {
        "run": run,
        "steps": int(row["steps"]),
        "tokens": int(row["tokens"]),
        "unique_states": int(row["unique_states"]),
        "entropy": {"first": _number(row["entropy_first"]), "last": _number(row["entropy_last"])},
        "predictors": predictors,
        **{k: _number(row[k]) for k in ("floor", "ceiling", "identity_error", "gradient_audit")},
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, str | int) else _number(v) for k, v in row.items()}


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
