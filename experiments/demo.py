"""The packaged demo and two methods on it, as the small tables that figures/ is drawn from.

    python -m experiments.demo [--runs runs/figures]

Trains what is missing (the demo, STEER and entropy_target with its settings, seed 0, one thread
each: about ten minutes), analyzes and audits it, and writes the tables to experiments/results/00_*.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from entropy_lab.analysis import analyze
from entropy_lab.analysis.audit import audit
from entropy_lab.record import open_run
from entropy_lab.train.launch import run_training
from experiments.results import MOST, RESULTS

ARMS = {
    "00_demo": [],
    "00_steer": ["method.name=steer"],
    "00_entropy_target": ["method.name=entropy_target", "probe.deep_every=0"],
}
# Beside the run's own; the selecting ones with the dose of 02_methods that binds.
AUDITED = (
    "steer", "clip_higher", "clip_cov:ratio=0.02,lb=0.1", "kl_cov:ratio=0.02",
    "entropy_bonus:beta=0.01", "entropy_advantage", "fork_tokens", "w_reinforce", "opo", "cispo",
    "ce_gppo", "stare",
)  # fmt: skip
_LEFT_OUT = ("summary", "warnings")  # they name folders of the machine that made them
# Of the two methods only what their figures read.
KEPT = {"00_steer": ("weight_steps", "weights"), "00_entropy_target": ("targets", "target_sums")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables of the demo for figures/")
    parser.add_argument("--runs", type=Path, default=Path("runs/figures"))
    args = parser.parse_args()
    for name, overrides in ARMS.items():
        run = args.runs / name.removeprefix("00_")
        if not (run / "run.json").exists():
            run_training(None, overrides, run)
        elif open_run(run).info["status"] != "finished":
            run_training(None, [], run, resume=True)
        analyze([run])
        if name == "00_demo":
            audit(run, AUDITED)
        keep(name, run / "analysis")


def keep(name: str, folder: Path) -> None:
    """Copy the tables of `folder` that are small enough to RESULTS/name."""
    target = RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.parquet")):
        if path.stem in _LEFT_OUT or path.stem not in KEPT.get(name, (path.stem,)):
            continue
        if path.stat().st_size > MOST:
            print(f"left out {path.name}: over 1 MiB")
            continue
        shutil.copyfile(path, target / path.name)


if __name__ == "__main__":
    main()
