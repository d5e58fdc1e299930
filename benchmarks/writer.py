"""W1: how fast the log writer is and how many bytes a token costs on disk.

    python -m benchmarks.writer [--rows N] [--windows N] [--profile core|full]

Bars: at least 40 M float values/s a rank; at most 3.9 B per float column and token, plus 2 B for
the keys; at most 2 % of a training step of the demo, in CPU seconds of the training thread (the
background thread's share stands beside it). The rows have the shape of a real log: most entropies
near zero, responses of lognormal length, Zipf tokens, groups of 8 whose responses share the
beginning of their text. The time is that of the whole path through RunWriter: copies, sort check,
encoding, fsync, rename.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq

from benchmarks._bars import line, note
from entropy_lab.record import RunWriter, create_run, open_run, token_schema
from entropy_lab.record.schema import TOKEN_KEYS, Profile
from entropy_lab.record.window import Window
from entropy_lab.train import loop
from entropy_lab.train.launch import run_training

GROUP = 8
WINDOW_STEPS = 4


def token_rows(rng: np.random.Generator, step: int, rows: int) -> dict[str, np.ndarray]:
    """Keys of one step: responses of a group share a prefix of random length."""
    lengths = np.clip(rng.lognormal(5.5, 0.8, rows // 50 + 64).astype(np.int64), 8, 4096)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), rows) + 1]
    response = np.repeat(np.arange(len(lengths)), lengths)[:rows]
    pos = (np.arange(rows) - np.repeat(np.cumsum(lengths) - lengths, lengths)[:rows]).astype(int)
    shared = rng.geometric(0.05, len(lengths))[response] > pos
    prefix = ((response // GROUP) * 1_000_003 + pos + step * 7_000_003) * 0x9E3779B97F4A7C1
    state = np.where(shared, prefix, rng.integers(-(2**63), 2**63 - 1, rows))
    return {
        "step": np.full(rows, step, np.int32),
        "micro": (response // 64).astype(np.int16),
        "uid": (np.int64(step) << 32) + response,
        "pos": pos.astype(np.int32),
        "token_id": np.minimum(rng.zipf(1.3, rows), 151_000).astype(np.int32),
        "state": state,
        "age": np.zeros(rows, np.uint8),
        "flags": (rng.random(rows) < 0.003).astype(np.uint8),
    }


def rows_of(rng: np.random.Generator, step: int, rows: int, names: list[str]) -> dict:
    """Keys and floats; values that repeat in a real log repeat here, all others are random."""
    columns = token_rows(rng, step, rows)
    advantage = rng.normal(size=int(columns["uid"].max() - (step << 32)) + 1).round(3)
    entropy = np.where(rng.random(rows) < 0.8, rng.exponential(1e-3, rows), rng.gamma(2, 0.4, rows))
    for name in names:
        columns[name] = (rng.normal(size=rows) * entropy * 1e-3).astype(np.float32)
    columns["entropy"] = entropy.astype(np.float32)
    columns["logp"] = (-entropy * rng.exponential(1.0, rows)).astype(np.float32)
    columns["old_logp"] = columns["logp"] + rng.normal(0, 1e-3, rows).astype(np.float32)
    columns["advantage"] = advantage[columns["uid"] - (step << 32)].astype(np.float32)
    columns["weight"] = np.where(rng.random(rows) < 0.02, 0.7, 1.0).astype(np.float32)
    return columns


def disk_bytes(run_dir: Path) -> dict[str, int]:
    """Compressed bytes of each token column over all parts."""
    total: dict[str, int] = {}
    for path in open_run(run_dir).token_files:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                name = column.path_in_schema
                total[name] = total.get(name, 0) + column.total_compressed_size
    return total


def write_run(run_dir: Path, profile: Profile, data: list[dict], n_windows: int) -> np.ndarray:
    """Wall and CPU seconds of recording the rows n_windows times, after a first window."""
    writer = RunWriter(run_dir, profile=profile, flush_steps=len(data))
    start = np.zeros(2)
    for step in range((n_windows + 1) * len(data)):
        if step == len(data):  # the first window pays for memory that later ones reuse
            writer.flush()
            start = np.array([time.perf_counter(), time.process_time()])
        columns = data[step % len(data)]
        writer.tokens({**columns, "step": np.full(len(columns["step"]), step, np.int32)})
        writer.commit({"step": step})
    writer.close()
    return np.array([time.perf_counter(), time.process_time()]) - start


def measure(profile: Profile, n_windows: int, rows: int, detail: bool) -> None:
    """Write one run and print speed and size."""
    floats = [name for name in token_schema(profile).names if name not in TOKEN_KEYS]
    rng = np.random.default_rng(0)
    data = [rows_of(rng, step, rows, floats) for step in range(WINDOW_STEPS)]
    run_dir = Path(tempfile.mkdtemp(prefix="entropy-lab-w1-"))
    try:
        create_run(run_dir, {}, seeds=0)
        wall, cpu = write_run(run_dir, profile, data, n_windows)
        size = disk_bytes(run_dir)
    finally:
        shutil.rmtree(run_dir)
    n, stored = n_windows * WINDOW_STEPS * rows, (n_windows + 1) * WINDOW_STEPS * rows
    speed, busy = (n * len(floats) / seconds / 1e6 for seconds in (wall, cpu))
    line("W1", f"{profile}: M float values/s", f"{speed:.0f}", ">= 40", speed >= 40)
    note(f"  of a CPU second; {n / wall / 1e6:.2f} M tokens/s", f"{busy:.0f}")
    per_float = sum(size[name] for name in floats) / stored / len(floats)
    what = f"{profile}: B per float column and token"
    line("W1", what, f"{per_float:.2f}", "<= 3.9", per_float <= 3.9)
    keys = sum(size[name] for name in TOKEN_KEYS if name != "state") / stored
    line("W1", f"{profile}: B of the keys and token", f"{keys:.2f}", "<= 2", keys <= 2)
    note("  the state hash (8 where every state differs)", f"{size['state'] / stored:.2f}")
    if detail:
        print("  " + ", ".join(f"{name} {count / stored:.2f}" for name, count in size.items()))


def share_of_step(folder: Path) -> None:
    """CPU seconds in the writer's calls and in its thread over those of the demo's steps."""
    calls, thread = [0.0], [0.0]

    def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                into[0] += time.thread_time() - start

        return wrapped

    names = ("tokens", "step", "samples", "commit")
    with ExitStack() as stack:
        for name in names:
            method = timed(getattr(RunWriter, name), calls)
            stack.enter_context(patch.object(RunWriter, name, method))
        stack.enter_context(patch.object(Window, "write", timed(Window.write, thread)))
        whole = [0.0]
        settings = ["train.rollouts=12", "probe.deep_every=0", "train.checkpoint_every=0"]
        timed(run_training, whole)(None, settings, folder / "warm")  # makes the model
        calls[0] = thread[0] = whole[0] = 0.0
        with patch.object(loop, "train", timed(loop.train, whole)):
            run_training(None, settings, folder / "demo")
    share = calls[0] / whole[0]
    line("W1", "share of a training step, demo", f"{share:.1%}", "<= 2%", share <= 0.02)
    note("  background thread over the training thread", f"{thread[0] / whole[0]:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="W1: speed and size of the log writer")
    parser.add_argument("--rows", type=int, default=262_144, help="token rows a step")
    parser.add_argument("--windows", type=int, default=8, help="windows of 4 steps each")
    parser.add_argument("--profile", choices=["core", "full"], help="default: both")
    parser.add_argument("--detail", action="store_true", help="bytes of every column")
    args = parser.parse_args()
    profiles: list[Profile] = [args.profile] if args.profile else ["core", "full"]
    for profile in profiles:
        measure(profile, args.windows, args.rows, args.detail)
    with tempfile.TemporaryDirectory(prefix="entropy-lab-w1-") as folder:
        share_of_step(Path(folder))


if __name__ == "__main__":
    main()
