"""A1: seconds and resident memory of analyzing token rows, on two threads.

    python -m benchmarks.analysis [--rows N] [--step-rows N] [--deep-every N] [--log DIR]

Bar: 50 M rows in at most 60 s and 2 GB. The log is written by the real writer into a temporary
folder, with the rows of benchmarks.writer in the profile `full`: prompt groups of eight, six closed
forms, no deep steps unless asked for. Every step has its own uids and states. The analysis, and one
bare pass that decodes the columns which the analysis reads and does nothing with them, run in
processes of their own, held to two cores; the bare pass comes first, so that both read from the
page cache. Fewer rows are extrapolated in proportion, although a second or two do not grow with
them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.writer import GROUP, WINDOW_STEPS, rows_of
from entropy_lab.analysis import analyze
from entropy_lab.analysis.rows import needed
from entropy_lab.record import RunWriter, create_run, open_run, set_status, token_schema
from entropy_lab.record.schema import FULL_PREDICTORS, TOKEN_KEYS

THREADS = 2
ROWS, SECONDS, GIGABYTES = 50_000_000, 60.0, 2.0
_MIX = 0x9E3779B97F4A7C1  # another state hash for every step


def write_log(path: Path, rows: int, step_rows: int, deep_every: int) -> None:
    """Write a finished run of at least `rows` token rows."""
    deep = deep_every > 0
    floats = [name for name in token_schema("full", deep=deep).names if name not in TOKEN_KEYS]
    late = [name for name in floats if name not in token_schema("full").names]
    rng = np.random.default_rng(0)
    blocks = [rows_of(rng, 0, step_rows, floats) for _ in range(WINDOW_STEPS)]
    create_run(path, {}, seeds=0)
    steps = -(-rows // step_rows)
    missing = dict.fromkeys(late, np.full(step_rows, np.nan, np.float32))
    with RunWriter(path, profile="full", flush_steps=WINDOW_STEPS, deep=deep) as writer:
        for step in range(steps):
            block = blocks[step % WINDOW_STEPS]
            uid = block["uid"] + (step << 32)
            writer.tokens(
                block
                | {"step": np.full(step_rows, step, np.int32), "uid": uid}
                | {"state": block["state"] ^ np.int64(step * _MIX % 2**63)}
                | (missing if deep and step % deep_every else {})
            )
            writer.samples(_samples(step, np.unique(uid)))
            writer.step({"step": step, "floor": 1e-6, "floor_rows": 1e3})
            writer.commit({"step": step, "rollout": step, "age": 0, "entropy_token_mean": 0.3})
    set_status(path, "finished")


def _samples(step: int, uid: np.ndarray) -> dict:
    count = len(uid)
    return {
        "step": np.full(count, step, np.int64),
        "rollout": np.full(count, step, np.int64),
        "group": (step << 32) + np.arange(count) // GROUP,
        "uid": uid,
        "prompt_id": np.arange(count) // GROUP,
        "reward": np.zeros(count, np.float32),
        "advantage": np.zeros(count, np.float32),
        "length": np.ones(count, np.int32),
        "truncated": np.zeros(count, bool),
        "inclusion_prob": np.ones(count, np.float32),
        "prompt": [""] * count,
        "response": [""] * count,
    }


def bare(path: Path) -> None:
    """One pass over the columns that the analysis reads."""
    for _, table in open_run(path).iter_steps(needed(FULL_PREDICTORS)):
        for column in table.columns:
            column.to_numpy()


def measured(side: str, path: Path, *more: str) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (GB) of one side, in a process of its own.

    Also for writing: a process starts with the peak memory of the one that started it.
    """
    command = [sys.executable, "-m", "benchmarks.analysis", "--side", side, "--log", str(path)]
    command += more
    threads = {"OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS)}
    out = subprocess.run(
        command, env=os.environ | threads, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(out.stdout)


def run_side(side: str, path: Path, args: argparse.Namespace) -> None:
    """Run one side in this process and print what it took as JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    pa.set_cpu_count(THREADS)
    start = time.perf_counter()
    if side == "write":
        write_log(path, args.rows, args.step_rows, args.deep_every)
    elif side == "bare":
        bare(path)
    else:
        analyze([path], path / "analysis")
    wall = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    print(json.dumps({"wall": wall, "cpu": time.process_time(), "memory": peak}))


def report(rows: int, bare: dict[str, float], found: dict[str, float]) -> None:
    wall, scale = found["wall"], ROWS / rows
    for name, one in (("one bare pass", bare), ("analysis", found)):
        print(
            f"{name:<14} {one['wall']:6.1f} s ({one['cpu']:.1f} CPU s), "
            f"{one['memory']:.2f} GB, {one['wall'] / rows * 1e9:.0f} ns a row"
        )
    print(f"analysis / bare pass: {wall / bare['wall']:.1f}")
    how = "" if rows >= ROWS else f" (extrapolated from {rows / 1e6:g} M)"
    met = wall * scale <= SECONDS and found["memory"] <= GIGABYTES
    print(
        f"A1  {ROWS / 1e6:g} M rows, {THREADS} threads{how}: {wall * scale:.0f} s, "
        f"{found['memory']:.2f} GB   <= {SECONDS:g} s, <= {GIGABYTES:g} GB   "
        f"{'met' if met else 'MISSED'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A1: time and memory of the analysis")
    parser.add_argument("--rows", type=int, default=5_000_000, help="token rows")
    parser.add_argument("--step-rows", type=int, default=262_144, help="token rows a step")
    parser.add_argument("--deep-every", type=int, default=0, help="every Nth step is deep")
    parser.add_argument("--log", type=Path, help="a run to analyze; written there if missing")
    parser.add_argument("--side", choices=["write", "bare", "analysis"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run_side(args.side, args.log, args)
        return
    with tempfile.TemporaryDirectory(prefix="entropy-lab-a1-") as folder:
        path = args.log or Path(folder) / "run"
        if not (path / "run.json").exists():
            names = ("rows", "step_rows", "deep_every")
            settings = [f"--{n.replace('_', '-')}={getattr(args, n)}" for n in names]
            measured("write", path, *settings)
        run = open_run(path)
        rows = sum(pq.read_metadata(part).num_rows for part in run.token_files)
        print(f"{rows:,} token rows of {len(run.steps_probed)} steps")
        report(rows, measured("bare", path), measured("analysis", path))


if __name__ == "__main__":
    main()
