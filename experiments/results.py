"""From the runs of an experiment to the small tables in experiments/results.

Tables of runs and tokens stay with the runs; what is kept is what a figure or a sentence reads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from entropy_lab.analysis import analyze
from entropy_lab.analysis.replay import METRICS, lines, pairs
from entropy_lab.analysis.store import write_tables
from entropy_lab.analysis.tables_runs import OF_SEVERAL
from entropy_lab.record import load
from entropy_lab.report import summary_lines
from entropy_lab.report.replayed import replayable

RESULTS = Path(__file__).parent / "results"
TOKEN_TABLES = ("summary", "predictor_seeds", "validation", "budget", "influence", "calibration")
MOST = 2**20  # bytes of a table that belongs into the repository


def write_results(name: str, runs: Sequence[Path], jobs: int = 1) -> None:
    """Analyze the runs together and keep the small tables in RESULTS/name; prints the summary."""
    if name == "03_replay":
        _replay(name, runs)
        return
    tokens = name == "01_predictors"
    with tempfile.TemporaryDirectory() as folder:
        found = analyze(runs, folder, tokens=tokens, jobs=jobs)
        kept = TOKEN_TABLES if tokens else ("summary", "pass_at_k", "benchmarks", *OF_SEVERAL)
        tables = {k: found.tables[k] for k in kept if k in found.tables}
        if "method_curves" in tables:
            tables["method_curves"] = _thinned(tables["method_curves"])
        _keep(name, tables)
        print("\n".join(summary_lines(found.tables)))
    if not tokens:
        _keep(name, {"doses": _doses(runs)})


def _thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """Entropy and reward at every eighth place: the curves are running means over nine."""
    every = curves["at"].rank(method="dense").astype(int) % 8 == 1
    return curves[every & curves["metric"].isin(["entropy", "reward"])]


def _doses(runs: Sequence[Path]) -> pd.DataFrame:
    """How much each run's method acted: means over steps."""
    columns = ["touched_share", "clip_high_frac", "clip_low_frac", "dual_clip_frac"]
    rows = []
    for path in runs:
        run = load(path)
        means = run.metrics()[columns].mean()
        rows.append({"run": path.name, "seed": run.info["seeds"]["run"], **means})
    return pd.DataFrame(rows)


def _replay(name: str, runs: Sequence[Path]) -> None:
    """Ten states of every run, all minibatches of the rollout that was stored there."""
    from entropy_lab.train.replay import replay

    chosen, parts = replayable(["all", "entropy_bonus:beta=0.01"]), []
    for path in runs:
        inner = load(path).info["config"]["train"]["minibatches"]
        found = replay(path, chosen, inner=inner, points=10, deep=False)
        parts.append(found.rows.assign(run=path.name))
        print(f"replayed {path.name}", flush=True)
    rows = pd.concat(parts, ignore_index=True)
    # A state is a run and a step of it.
    state = rows["run"] + " " + rows["point"].astype(str)
    table = pairs(rows.assign(point=state), "grpo").assign(run="all")
    kept = ["run", "method", "own", "point", "inner", *(m for m in METRICS if m in rows)]
    _keep(name, {"replay": rows[kept], "replay_pairs": table})
    print("\n".join(lines(table)))


def _keep(name: str, tables: dict[str, pd.DataFrame]) -> None:
    small = {k: v for k, v in tables.items() if len(v) and v.memory_usage().sum() < 32 * MOST}
    write_tables(RESULTS / name, small)
    for path in (RESULTS / name).glob("*.parquet"):
        if path.stat().st_size > MOST:
            path.unlink()
            print(f"left out {path.name}: over 1 MiB")
