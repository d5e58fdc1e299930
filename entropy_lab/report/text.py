"""The summary of about ten lines that the terminal shows after an analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from entropy_lab.analysis.tables import Row, records
from entropy_lab.report.methods import MANY_RUNS, SINGLE, verdict

Tables = Mapping[str, pd.DataFrame]


def summary_lines(tables: Tables) -> list[str]:
    """Plain lines: what happened, which prediction holds how far, what to beware of."""
    if len(tables["summary"]) > 1:
        return _comparison(tables)
    (row,) = records(tables["summary"])
    rows = f", {row['tokens']:,} token rows of {row['probed_steps']} probed steps, "
    read = rows + states(row["unique_states"]) if row["tokens"] else ", no token rows read"
    lines = [f"{row['run']}: {row['method']}, {row['steps']} steps{read}"]
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
    lines = [*verdict(tables), *_methods(records(tables["methods"]))]
    lines += _predictor_seeds(tables["predictor_seeds"])
    if len(tables["summary"]) <= MANY_RUNS:
        lines += _runs(tables)
    if (tables["methods"]["seeds"] == 1).all():
        lines.append("one run per method: differences have no interval; repeat with other seeds")
    return lines + _warnings(tables["warnings"])


def _methods(rows: list[Row]) -> list[str]:
    width = max(len("method"), *(len(r["method"]) for r in rows))
    band = 19
    lines = [
        f"{'method':<{width}}  seeds  {'last entropy [95 %]':<{band}}  "
        f"{'last reward [95 %]':<{band}}  P(more reward than {rows[0]['baseline']})"
    ]
    for r in rows:
        cells = [f"{_band(r, name):<{band}}" for name in ("entropy", "reward")]
        chance = "baseline" if r["method"] == r["baseline"] else _band(r, "improvement")
        single = f"  {SINGLE}" if r["seeds"] == 1 else ""
        line = f"{r['method']:<{width}}  {r['seeds']:>5}  {'  '.join(cells)}  {chance}{single}"
        lines.append(line.rstrip())
    return lines


def _predictor_seeds(table: pd.DataFrame) -> list[str]:
    """The forms against dH over the seeds of each method; nothing where no token was read."""
    lines: list[str] = []
    for method, data in table[table["target"] == "dH"].groupby("method", sort=False):
        rows = sorted(records(data), key=lambda r: -r["pcc"])
        width = max(len("predictor"), *(len(r["predictor"]) for r in rows))
        most = max(r["seeds"] for r in rows)
        lines.append(f"{method}: forms against dH, mean over {most} run{'s' * (most > 1)}")
        lines.append(f"{'predictor':<{width}}  {'PCC in a step [95 %]':<20}  {'SRCC':<18}  sign")
        lines += [
            f"{r['predictor']:<{width}}  {_band(r, 'pcc'):<20}  {_band(r, 'srcc'):<18}  "
            f"{_band(r, 'sign')}"
            for r in rows
        ]
    return lines


def _band(row: Row, name: str) -> str:
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    band = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
    return _fixed(row[name]) + band


def _runs(tables: Tables) -> list[str]:
    rows = records(tables["comparison"], level="run")
    cells = {(r["name"], r["metric"]): r for r in rows}
    names = {r["name"]: r for r in rows}
    if not names:
        return []
    width = max(len("run"), *(len(name) for name in names))
    wide = max(len("method"), *(len(row["method"]) for row in names.values()))
    lines = [
        f"{'run':<{width}}  {'method':<{wide}}  steps  entropy first  last   reward first  last"
    ]
    for name, row in names.items():
        ends = [
            _fixed(cells[name, metric][end]) if (name, metric) in cells else "-"
            for metric in ("entropy", "reward")
            for end in ("first", "last")
        ]
        lines.append(
            f"{name:<{width}}  {row['method']:<{wide}}  {row['steps']:>5}  "
            f"{ends[0]:>13}  {ends[1]:>4}  {ends[2]:>13}  {ends[3]:>4}"
        )
    return lines


def _warnings(warnings: pd.DataFrame) -> list[str]:
    return [f"{level}: {text}" for level, text in grouped(warnings)]


def grouped(warnings: pd.DataFrame) -> list[tuple[str, str]]:
    """(level, text) of each warning; with the run, or the number of runs that share it."""
    runs: dict[tuple[str, str], list[str]] = {}
    for row in records(warnings):
        runs.setdefault((row["level"], row["text"]), []).append(row["run"])
    several = len({name for names in runs.values() for name in names}) > 1
    out = []
    for (level, text), names in runs.items():
        who = f"{len(names)} runs" if len(names) > 1 else names[0]
        out.append((level, f"{who}: {text}" if several and who else text))
    return out
