"""Rows that are a pure function of their step; run as a script it records them until killed.

python record_rows.py RUN_DIR LAST_STEP [FILE_SIZE_LIMIT]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from entropy_lab import record as record_package
from entropy_lab.errors import RunError
from entropy_lab.record import RunWriter, create_run, open_run

FLUSH_STEPS, CHECKPOINT_EVERY = 3, 8
FLOATS = ("advantage", "old_logp", "logp", "entropy", "weight", "grad_logp", "dH", "x_mine")
ROOT = Path(record_package.__file__).parents[2]
SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42, 3.4e38], np.float32)


def is_probed(step: int) -> bool:
    return step % 3 != 2


def token_columns(step: int) -> dict[str, np.ndarray]:
    """Rows of one step in no particular order."""
    rng = np.random.default_rng([7, step])
    n = int(rng.integers(20, 200))
    columns = {
        "step": np.full(n, step),
        "micro": rng.integers(0, 3, n),
        "uid": (step << 32) + rng.integers(0, 9, n),
        "pos": rng.permutation(n),
        "token_id": rng.integers(0, 150_000, n),
        "state": rng.integers(-(2**63), 2**63 - 1, n),
        "age": rng.integers(0, 4, n),
        "flags": rng.integers(0, 256, n),
    }
    for name in FLOATS:
        columns[name] = rng.normal(size=n).astype(np.float32)
    columns["dH"][:6] = SPECIAL
    return columns


def sorted_columns(step: int) -> dict[str, np.ndarray]:
    """The same rows as the log must hold them; sorted by Python."""
    columns = token_columns(step)
    keys = [columns[name].tolist() for name in ("step", "micro", "uid", "pos")]
    order = sorted(range(len(keys[0])), key=lambda i: tuple(key[i] for key in keys))
    return {name: values[order] for name, values in columns.items()}


def sample_columns(step: int) -> dict[str, list]:
    return {
        "step": [step] * 2,
        "rollout": [step // 2] * 2,
        "uid": [step << 32, (step << 32) + 1],
        "reward": [float(step % 2), 0.5],
        "prompt": [f"prompt {step}"] * 2,
        "response": [f"responsé {step}\n", ""],
    }


def eval_rows(step: int, benchmark: str = "sums", mean: float = 0.5) -> list[dict[str, Any]]:
    """One evaluation: two rows, of which the second has no standard error."""
    shared = {"benchmark": benchmark, "step": step, "n": 3, "samples": 4, "entropy": 0.1 * step}
    shared |= {"temperature": 0.7, "top_p": 1.0, "max_tokens": 9, "avg_at_k": mean}
    ends = ("avg_at_k_lo", "avg_at_k_hi", "pass_at_k_lo", "pass_at_k_hi")
    shared |= dict(zip(ends, (0.1, 0.9, 0.2, 0.8), strict=True))
    numbers = [(1, mean, 0.25), (2, 0.75, None)]
    return [shared | {"k": k, "pass_at_k": p, "pass_at_k_se": se} for k, p, se in numbers]


def record(writer: RunWriter, first: int, last: int) -> None:
    """Steps first..last: two steps a rollout, one in three unprobed, checkpoints by flush()."""
    for step in range(first, last + 1):
        if step % 2 == 0:
            writer.samples(sample_columns(step))
        if is_probed(step):
            columns, half = token_columns(step), 11
            writer.tokens({name: values[:half] for name, values in columns.items()})
            writer.tokens({name: values[half:] for name, values in columns.items()})
        writer.step({"step": step, "lr": 0.1 * step, "probed": is_probed(step), "dH_train": None})
        writer.commit({"step": step, "reward": step / 7, "dH_train": float("nan")})
        if (step + 1) % CHECKPOINT_EVERY == 0:
            writer.flush()
            note = writer.run_dir / "checkpoint.new"
            note.write_text(str(step))
            os.replace(note, writer.run_dir / "checkpoint")


def new_writer(run_dir: Path, merge: bool = False) -> RunWriter:
    meta = {"temperature": "0.7"}
    return RunWriter(run_dir, flush_steps=FLUSH_STEPS, meta=meta, merge=merge)


def new_run(path: Path) -> Path:
    return create_run(path, {"train": {"lr": 1e-4}}, seeds={"run": 1})


def uninterrupted(path: Path, last: int) -> Path:
    """A finished run of the steps 0..last."""
    with new_writer(new_run(path)) as writer:
        record(writer, 0, last)
    return path


def files_of(run_dir: Path) -> dict[str, bytes]:
    """Everything recorded, byte for byte; run.json holds dates and the checkpoint is ours."""
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "checkpoint", "checkpoint.new")
    }


def start_child(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def check_rows(run_dir: Path, through: int | None) -> None:
    """Every probed step up to `through` is there, and every row that is there is right."""
    run = open_run(run_dir)
    assert run.damaged == []
    probed = [step for step in range(-1 if through is None else through + 1) if is_probed(step)]
    assert set(probed) <= set(run.steps_probed)
    for step, table in run.iter_steps() if run.steps_probed else ():
        for name in (*FLOATS, "uid", "pos", "state"):
            assert np.array_equal(
                table[name].to_numpy().view(np.uint8),
                sorted_columns(step)[name]
                .astype(table[name].type.to_pandas_dtype())
                .view(np.uint8),
            ), (step, name)


def main() -> int:
    run_dir, last = Path(sys.argv[1]), int(sys.argv[2])
    create_run(run_dir, {}, seeds=0)
    if len(sys.argv) > 3:
        import resource

        limit = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with new_writer(run_dir) as writer:
            record(writer, 0, last)
    except RunError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
