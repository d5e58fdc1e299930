"""From run directories to analysis tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.analysis import bootstrap, curves, where
from entropy_lab.analysis.arms import arms, mixed
from entropy_lab.analysis.as_json import as_json
from entropy_lab.analysis.belief import belief, noise_floor
from entropy_lab.analysis.budget import BudgetSums
from entropy_lab.analysis.calibration import calibration
from entropy_lab.analysis.caveats import caveats
from entropy_lab.analysis.deep import deep_columns, deep_rows, deep_steps
from entropy_lab.analysis.drift import drift, drift_final
from entropy_lab.analysis.evaluations import pass_at_k
from entropy_lab.analysis.influence import InfluenceSums
from entropy_lab.analysis.many import over_runs, run_lengths
from entropy_lab.analysis.processes import side_by_side
from entropy_lab.analysis.response import response_terms
from entropy_lab.analysis.rows import Columns, Groups, needed
from entropy_lab.analysis.scan import Scan, measure_ranges, scan
from entropy_lab.analysis.store import write_tables
from entropy_lab.analysis.strata import strata
from entropy_lab.analysis.tables import (
    FIRST_STEP,
    PREDICTOR_PREFIX,
    TABLES,
    TERMS,
    frame,
    ordered_predictors,
    records,
)
from entropy_lab.analysis.validate import validation, validation_steps
from entropy_lab.analysis.verdict import verdict
from entropy_lab.errors import RunError
from entropy_lab.record import Run, open_run

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found and wrote: `tables` lie in `out` as <name>.parquet."""

    runs: list[str]
    out: Path
    tables: Tables

    def to_json(self) -> dict[str, Any]:
        """The object of `analyze --json`: of the run, or of the comparison. NaN becomes None."""
        return as_json(self.tables, self.runs)


def analyze(
    run_dirs: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    tokens: bool = True,
    jobs: int = 1,
) -> Analysis:
    """Measure how well each prediction did and where the change lives; write the tables.

    One run: tables in RUN/analysis. Several: the tables of all of them and those over methods and
    seeds, in <their common folder>/comparison, which is left out where `runs/*` names it too. `out`
    overrides both. tokens=False: token rows and responses are not read, and what comes from them
    is empty. jobs: processes that read runs at the same time. Raises RunError for a directory that
    is not a run, holds no finished step, is damaged beyond reading, or cannot be written.
    """
    # One run under two spellings is one run.
    given = {Path(d).resolve(): Path(d) for d in reversed(run_dirs)}
    paths = [p for p in reversed(given.values()) if not _is_comparison(p)]
    if not paths:
        raise RunError("no run given: name at least one run directory")
    runs = [open_run(path) for path in paths]
    names = _names(paths)
    found = arms(runs, names)
    each = [(p, n, a.method, tokens) for p, n, a in zip(paths, names, found, strict=True)]
    parts = side_by_side(_analyze_run, each, jobs)
    tables = {name: _stack([p[name] for p in parts]) for name in parts[0]}
    if len(parts) > 1:
        tables |= over_runs(tables, [arm.seed for arm in found], mixed(runs, names, found))
    else:
        tables["drift_final"] = drift_final(tables["drift"], run_lengths(tables["curves"]), {})
    target = Path(out) if out is not None else _default_out(paths)
    write_tables(target, tables)
    return Analysis(names, target, tables)


def _is_comparison(path: Path) -> bool:
    return (path / "comparison.parquet").exists() and not (path / "run.json").exists()


def _stack(parts: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [p for p in parts if not p.empty]
    return pd.concat(filled, ignore_index=True) if filled else parts[0]


def _default_out(paths: list[Path]) -> Path:
    if len(paths) == 1:
        return paths[0] / "analysis"
    return Path(os.path.commonpath([p.resolve().parent for p in paths])) / "comparison"


def _names(paths: list[Path]) -> list[str]:
    resolved = [p.resolve() for p in paths]
    short = [p.name for p in resolved]
    if len(set(short)) == len(short):
        return short
    shared = os.path.commonpath(resolved)
    return [os.path.relpath(p, shared) for p in resolved]


def _analyze_run(path: Path, name: str, method: str, tokens: bool) -> Tables:
    run = open_run(path)
    rows = curves.step_rows(run)
    config = run.info.get("config") or {}
    groups = _groups(run) if tokens else Groups.of({})
    found = _scan(run, rows, groups) if tokens else None
    grouped = groups.known
    used = [s for s in found.train.steps if s >= found.first] if found else []
    unit = bootstrap.unit(len(used), grouped)
    tables = _token_tables(found, unit, grouped) | _deep_tables(run, rows, found, groups)
    tables["curves"] = curves.curves(rows, method)
    tables["drift"] = drift(rows, name, method)
    tables["pass_at_k"], skipped = pass_at_k(run, rows, name, method)
    beware = caveats(run, rows, found, grouped, tables["validation"], tokens)
    beware += [{"level": "warning", "text": skipped}] if skipped else []
    tables["warnings"] = frame("warnings", beware)
    row = {
        "path": str(run.path),
        "method": method,
        "task": str((config.get("task") or {}).get("name") or ""),
        "status": str(run.info.get("status")),
        "unit": unit,
        **_summary(tables, rows, found),
    }
    row["verdict"] = "\n".join(verdict(row, tables["validation"], tables["quadrants"]))
    tables["summary"] = frame("summary", [row])
    for table, data in tables.items():
        if "run" in TABLES[table]:
            data["run"] = pd.Series(name, index=data.index, dtype="str")
    return tables


def _token_tables(found: Scan | None, unit: str, grouped: bool) -> Tables:
    names = (
        "validation", "validation_steps", "strata", "quadrants", "regions", "density",
        "density_panels", "calibration",
    )  # fmt: skip
    if found is None:
        return {name: frame(name, []) for name in names}
    table = validation(found)
    quadrants, regions = where.quadrants(found), where.regions(found)
    for data in (quadrants, regions):
        data["unit"] = pd.Series(unit, index=data.index, dtype="str")
    return {
        "validation": table,
        "validation_steps": validation_steps(found),
        "strata": strata(found, grouped),
        "quadrants": quadrants,
        "regions": regions,
        "density": where.density(found),
        "density_panels": where.density_panels(found, table, unit),
        "calibration": calibration(found, grouped),
    }


def _deep_tables(run: Run, rows: pd.DataFrame, found: Scan | None, groups: Groups) -> Tables:
    deep = deep_steps(found, rows) if found else {}
    forms = ordered_predictors(set().union(*deep.values()))
    budget, influence = BudgetSums.of(forms), InfluenceSums()
    if deep:
        columns = deep_columns(run.columns("tokens"), forms)
        blocks = _blocks(run, columns, list(deep))
        for step in deep_rows(blocks, groups, _chances(rows)):
            budget.add(step)
            influence.add(step)
    grouped = groups.known
    return {"budget": budget.table(grouped), "influence": influence.table(grouped)}


def _groups(run: Run) -> Groups:
    try:
        have = run.columns("samples")
    except RunError:  # an importer may have no responses, and a young run none on disk
        return Groups.of({})
    wanted = [c for c in ("uid", "group", "inclusion_prob") if c in have]
    data = run.samples(columns=wanted)
    return Groups.of({name: data[name].to_numpy() for name in wanted})


def _scan(run: Run, steps: pd.DataFrame, groups: Groups) -> Scan | None:
    if not run.token_files or not run.steps_probed:
        return None
    have = run.columns("tokens")
    if "dH" not in have:  # an imported log
        return None
    forms = [c.removeprefix(PREDICTOR_PREFIX) for c in have if c.startswith(PREDICTOR_PREFIX)]
    predictors = ordered_predictors(f for f in forms if f not in TERMS)
    columns = [c for c in needed(predictors) if c in have or c != "state"]
    first = FIRST_STEP if run.steps_probed[-1] >= FIRST_STEP else 0
    rows = sum(pq.read_metadata(path).num_rows for path in run.token_files)

    def blocks(names: Sequence[str]) -> Iterator[tuple[int, Columns]]:
        return _blocks(run, names)

    ranges = measure_ranges(blocks, predictors, first, rows)
    return scan(
        blocks, columns, predictors, groups, _chances(steps), first, ranges, rows,
        noise_floor(steps),
    )  # fmt: skip


def _blocks(
    run: Run, names: Sequence[str], steps: list[int] | None = None
) -> Iterator[tuple[int, Columns]]:
    for step, table in run.iter_steps(names, steps):
        yield step, {name: _numpy(table[name]) for name in names}


def _chances(steps: pd.DataFrame) -> Callable[[int], float]:
    """Inclusion probability of a step's rows that have no sample."""
    if "inclusion_prob" not in steps:
        return lambda step: 1.0
    known = steps[["step", "inclusion_prob"]].dropna()
    known = known[known["inclusion_prob"].between(0, 1, inclusive="right")]
    chances = dict(zip(known["step"].astype(int), known["inclusion_prob"], strict=True))
    return lambda step: chances.get(step, 1.0)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_integer(column.type) and column.null_count:
        column = column.fill_null(0)
    return column.to_numpy()


def _summary(tables: Tables, rows: pd.DataFrame, found: Scan | None) -> dict[str, Any]:
    data = tables["curves"]
    within = records(tables["validation"], scope="within_step", stratum="all")
    entropy, reward = (curves.edges(data[c]) for c in ("entropy_token_mean", "reward"))
    return {
        "steps": len(data),
        "probed_steps": len(found.train.steps) if found else 0,
        "tokens": found.tokens if found else 0,
        "unique_states": found.states.value() if found else 0,
        "entropy_first": entropy[0],
        "entropy_last": entropy[1],
        "reward_first": reward[0],
        "reward_last": reward[1],
        "dH_train": float(data["dH_train"].mean()),
        "dH_heldout": curves.policy_change(rows),
        **response_terms(rows),
        **belief(rows, found),
        "best_predictor": max(within, key=lambda r: r["pcc"])["predictor"] if within else "",
    }
