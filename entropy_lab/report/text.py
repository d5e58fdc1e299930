"""The summary of about ten lines that the terminal shows after an analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from entropy_lab.analysis.tables import records

Tables = Mapping[str, pd.DataFrame]


def summary_lines(tables: Tables) -> list[str]:
    """Plain lines: what happened, which prediction holds how far, what to beware of."""
    if len(tables["summary"]) > 1:
        return _comparison(tables)
    (row,) = records(tables["summary"])
    lines = [
        f"{row['run']}: {row['method']}, {row['steps']} steps, {row['tokens']:,} token rows of "
        f"{row['probed_steps']} probed steps, {states(row['unique_states'])}"
    ]
    lines += str(row["verdict"]).splitlines()
    lines += _predictors(tables["validation"], str(row["unit"]))
    return lines + _warnings(tables["warnings"])


def states(count: int) -> str:
    """A count of states, or that the loop gave none."""
    return f"{count:,} unique states" if count else "states not recorded"


def _predictors(validation: pd.DataFrame, unit: str) -> list[str]:
    overall = records(validation, stratum="all")
    within = [r for r in overall if r["scope"] == "within_step"]
    if not within:
        return []
    within.sort(key=lambda r: -r["pcc"])
    pooled = {r["predictor"]: r["pcc"] for r in overall if r["scope"] == "pooled"}
    width = max(len("predictor"), *(len(r["predictor"]) for r in within))
    lines = [
        f"{'predictor':<{width}}  PCC in a step [95 %]  pooled  trim99   SRCC   sign     slope"
    ]
    for r in within:
        band = f"[{_fixed(r['pcc_lo'])}, {_fixed(r['pcc_hi'])}]"
        lines.append(
            f"{r['predictor']:<{width}}  {_fixed(r['pcc']):>5} {band:<14}  "
            f"{_fixed(pooled[r['predictor']]):>6}  {_fixed(r['pcc_trim99']):>6}  "
            f"{_fixed(r['srcc']):>5}  {_fixed(r['sign']):>5}  {r['slope']:>8.3g}"
        )
    rows, steps = (max(r[k] for r in within) for k in ("n", "steps"))
    return [*lines, f"n = {rows:,} rows of {steps} steps; intervals: {unit}"]


def _fixed(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _comparison(tables: Tables) -> list[str]:
    rows = records(tables["comparison"], level="run")
    cells = {(r["name"], r["metric"]): r for r in rows}
    names = {r["name"]: r for r in rows}
    width = max(len("run"), *(len(name) for name in names))
    lines = [f"{'run':<{width}}  {'method':<14}  steps  entropy first  last   reward first  last"]
    for name, row in names.items():
        ends = [
            _fixed(cells[name, metric][end]) if (name, metric) in cells else "-"
            for metric in ("entropy", "reward")
            for end in ("first", "last")
        ]
        lines.append(
            f"{name:<{width}}  {row['method']:<14}  {row['steps']:>5}  "
            f"{ends[0]:>13}  {ends[1]:>4}  {ends[2]:>13}  {ends[3]:>4}"
        )
    if len({row["method"] for row in names.values()}) == len(names):
        lines.append("one run per method: differences have no interval; repeat with other seeds")
    return lines + _warnings(tables["warnings"])


def _warnings(warnings: pd.DataFrame) -> list[str]:
    rows = records(warnings)
    several = len({r["run"] for r in rows}) > 1
    return [f"{r['level']}: {r['run'] + ': ' if several else ''}{r['text']}" for r in rows]
