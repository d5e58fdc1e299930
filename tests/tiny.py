"""A training run small enough for tests: the real trainer on a 20 k-parameter model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file

from entropy_lab import load

TINY = [
    "run.threads=1",
    "model.layers=1",
    "model.hidden=32",
    "model.intermediate=64",
    "model.heads=2",
    "task.digits=1",
    "model.warmup_iterations=300",
    "model.warmup_sequences=16",
    "model.warmup_ramp=5",
    "rollout.prompts=4",
    "rollout.group_size=4",
    "train.rollouts=6",
    "train.micro_batch=4",
    "train.checkpoint_every=2",
    "train.keep_checkpoints=0",
    "probe.fixed_responses=8",
    "probe.floor_every=3",
    "optimizer.lr=1e-3",
]


def cli_overrides(*more: str) -> list[str]:
    return [word for text in (*TINY, *more) for word in ("--set", text)]


def weights(run_dir: Path) -> dict:
    last = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    return load_file(last / "model.safetensors")


def metrics(run_dir: Path) -> list[dict]:
    lines = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in m.items() if not k.startswith("time_")} for m in lines]


def assert_same_run(a: Path, b: Path) -> None:
    """Equal metrics, token rows, steps, samples and weights, bit for bit, timings excepted."""
    assert metrics(a) == metrics(b)
    one, other = load(a), load(b)
    for table in ("tokens", "steps", "samples", "fixed"):
        left, right = getattr(one, table)(), getattr(other, table)()
        pd.testing.assert_frame_equal(left, right, check_exact=True)
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all((left[k] == right[k]).all() for k in left)
