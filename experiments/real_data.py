"""The trainer on real data, end to end: three steps of 512-token responses, and what it took.

    python -m experiments.real_data --data data [--out runs/data] [--set section.key=value]

Makes a tiny Qwen2 with a byte-level tokenizer from DAPO-Math-17k.parquet in --data (once), trains
configs/data.toml on it, and prints what the run left and the peak memory of its process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from entropy_lab import load

CONFIG = Path(__file__).parent / "configs" / "data.toml"


def train(arguments: list[str]) -> float:
    """`entropy-lab train` in a process of its own; its peak resident memory in GiB."""
    process = subprocess.Popen([sys.executable, "-m", "entropy_lab", "train", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return usage.ru_maxrss / 2**20  # KiB on Linux


def left(run_dir: Path) -> list[str]:
    """What the run wrote, counted."""
    run = load(run_dir)
    samples, evals = run.samples(), run.evals()
    reward = Counter(samples["reward"].round(3))
    [data] = run.info["data"]["train"]
    return [
        f"data: {data['rows']:,} rows, {data['used']:,} used, {data['overlong']:,} overlong, "
        f"{data['bad']:,} bad",
        f"samples: {len(samples):,} responses to {samples['prompt_id'].nunique()} problems, "
        f"{samples['length'].mean():.0f} tokens each; rewards {dict(sorted(reward.items()))}",
        f"rows: {len(run.tokens(columns=['step'])):,} tokens of {len(run.steps_probed)} steps",
        f"evals: {len(evals)} rows of {sorted(set(evals['benchmark']))} after steps "
        f"{sorted(set(evals['step']))}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="The trainer on real data, end to end")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--model", type=Path, default=Path("models/tiny"))
    parser.add_argument("--out", type=Path, default=Path("runs/data"))
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    args = parser.parse_args()
    text = args.data / "DAPO-Math-17k.parquet"
    if not (args.model / "config.json").is_file():
        command = ["experiments.tiny_model", "--text", str(text), "--out", str(args.model)]
        subprocess.run([sys.executable, "-m", *command], check=True)
    settings = [
        f"task.train={text}",
        f"task.validation={args.data / 'math500.parquet'}",
        f"model.path={args.model}",
        *args.set,
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    peak = train([str(CONFIG), *words, "--out", str(args.out)])
    print("\n".join(left(args.out)))
    print(f"peak memory of the training process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
