"""Predictions added up over a run against what the fixed probe set did: drift, drift_final.

A predictor's step mean in the log is over the rows of the step, the update's own tokens; the
realised change is that of the fixed set. So the sums differ for two reasons, the form and the rows.
What the rows alone do shows in the measured means: dH_train, over the same rows, and dH_heldout
are added up beside the predictors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.curves import prediction_columns
from entropy_lab.analysis.seeds import Indices, mean_over_seeds
from entropy_lab.analysis.tables import PREDICTOR_PREFIX, TERMS, frame, ordered_predictors

Array = NDArray[np.float64]

MEASURED = ("dH_train", "dH_heldout")
SUMS = ("predicted", "realised", "drift", "drift_scaled", "fixed", "scaled")


def drift(rows: pd.DataFrame, run: str, method: str) -> pd.DataFrame:
    """Rows of the table `drift` of one run; `rows` are its steps.

    Sums start at the first step with a fixed set. A predictor with a value at every step from
    there on is compared with the whole change, at the steps where it is known; another one (path
    forms on deep steps, means of probed steps) with the changes in the steps that it has.
    """
    tables = []
    if "entropy_fixed" in rows and rows["entropy_fixed"].notna().any():
        rows = rows.sort_values("step")
        start = int(np.flatnonzero(rows["entropy_fixed"].notna())[0])
        rows = rows.iloc[start:]
        before = _numbers(rows, "entropy_fixed")
        after = _after(rows, before)
        step = rows["step"].to_numpy()
        for name, column in _columns(rows).items():
            found = _sums(_numbers(rows, column), before, after)
            if found is not None:
                at, count, predicted, realised = found
                part = _table(name, step[at], predicted, realised)
                fixed = after[at] - before[0]
                part = part.assign(steps=count, fixed=fixed, scaled=fixed + part["drift_scaled"])
                tables.append(part)
    if not tables:
        return frame("drift", [])
    table = pd.concat(tables, ignore_index=True)
    return frame("drift", table.assign(level="run", name=run, method=method))


def with_methods(table: pd.DataFrame) -> pd.DataFrame:
    """`drift` of several runs with the means of each method after them."""
    if table.empty:
        return table
    keys = ["method", "predictor", "step"]
    groups = table.groupby(keys, sort=False)
    means = groups[list(SUMS)].mean()
    means = means.assign(steps=groups["steps"].min(), factor=groups["factor"].median())
    means = means.assign(runs=groups["name"].nunique()).reset_index()
    every = table.groupby(keys[:2])["name"].nunique().rename("every").reset_index()
    means = means.merge(every, on=keys[:2], how="left")
    means = means[means["runs"] == means["every"]].drop(columns=["runs", "every"])
    means = means.assign(level="method", name=means["method"])
    return frame("drift", pd.concat([table, means], ignore_index=True))


def drift_final(table: pd.DataFrame, steps: Mapping[str, int], draws: Mapping[str, Indices]):
    """The table drift_final: the end of every sum of `drift`, per run and per method.

    steps: optimizer steps of each run. draws: of the methods; none for a single run.
    """
    rows: list[dict[str, Any]] = []
    per_run = table[table["level"] == "run"]
    for (run, predictor), data in per_run.groupby(["name", "predictor"], sort=False):
        last = data.iloc[-1]
        rows.append(
            {
                "level": "run", "name": run, "method": last["method"], "seeds": 1,
                "predictor": predictor, "steps": last["steps"],
                "covered": last["steps"] / steps[str(run)],
                **{k: last[k] for k in ("predicted", "realised", "drift", "factor")},
                "drift_scaled": last["drift_scaled"],
            }
        )  # fmt: skip
    per_run = pd.DataFrame(rows)
    if per_run.empty or not draws:
        return frame("drift_final", rows)
    for (method, predictor), data in per_run.groupby(["method", "predictor"], sort=False):
        rows.append(_of_method(str(method), str(predictor), data, draws[str(method)]))
    return frame("drift_final", rows)


def _of_method(method: str, predictor: str, data: pd.DataFrame, draws: Indices) -> dict[str, Any]:
    names = ["predicted", "realised", "drift", "drift_scaled"]
    # A run without the predictor keeps its place among the seeds that are drawn.
    values = np.full((draws.shape[1], len(names)), np.nan)
    values[: len(data)] = data[names].to_numpy(np.float64)
    mean, low, high, seeds = mean_over_seeds(values, draws)
    row: dict[str, Any] = {
        "level": "method", "name": method, "method": method, "seeds": int(seeds[0]),
        "predictor": predictor, "steps": data["steps"].min(), "covered": data["covered"].min(),
        "factor": data["factor"].median(),
    }  # fmt: skip
    for i, name in enumerate(names):
        row[name] = mean[i]
        if name.startswith("drift"):
            row |= {f"{name}_lo": low[i], f"{name}_hi": high[i]}
    return row


def _columns(rows: pd.DataFrame) -> dict[str, str]:
    """Name -> column of what is added up: the predictors in order, then what was measured."""
    forms = {c.removeprefix(PREDICTOR_PREFIX): c for c in prediction_columns(rows)}
    names = ordered_predictors(name for name in forms if name not in TERMS)
    return {n: forms[n] for n in names} | {n: n for n in MEASURED if n in rows}


def _after(rows: pd.DataFrame, before: Array) -> Array:
    """Entropy of the fixed set after each step: as measured there, else before the next step."""
    after = np.full(len(rows), np.nan)
    following = np.diff(rows["step"].to_numpy()) == 1
    after[:-1][following] = before[1:][following]
    if "dH_fixed" in rows:
        measured = before + _numbers(rows, "dH_fixed")
        after = np.where(np.isfinite(measured), measured, after)
    return after


def _sums(
    values: Array, before: Array, after: Array
) -> tuple[Indices, Indices, Array, Array] | None:
    """(rows, steps summed, predicted, realised); None where there is nothing to compare."""
    known, measured = np.isfinite(values), np.isfinite(after)
    if known.all():
        at = np.flatnonzero(measured)
        count, predicted, realised = at + 1, values.cumsum()[at], after[at] - before[0]
    else:
        at = np.flatnonzero(known & measured & np.isfinite(before))
        count, predicted = np.arange(1, len(at) + 1), values[at].cumsum()
        realised = (after - before)[at].cumsum()
    return (at, count, predicted, realised) if len(at) else None


def _table(name: str, step: Array, predicted: Array, realised: Array) -> pd.DataFrame:
    half = -(-len(step) // 2)
    x, y = predicted[:half], realised[:half]
    factor = float(x @ y) / float(x @ x) if x.any() else float("nan")
    columns = {"predictor": name, "step": step, "predicted": predicted, "realised": realised}
    columns |= {"drift": predicted - realised, "factor": factor}
    return pd.DataFrame(columns | {"drift_scaled": factor * predicted - realised})


def _numbers(rows: pd.DataFrame, column: str) -> Array:
    return pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=np.float64)
