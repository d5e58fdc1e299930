"""The packaged demo's job trained by TRL under `attach` and by the bundled trainer, each analyzed.

    pip install 'entropy-lab[train,trl]'
    python -m benchmarks.trl_validation [--rollouts N] [--out DIR]

Both start at the same warmed-up weights and take the same problems in the same order, two AdamW
steps of 128 responses a rollout (the settings of benchmarks.against_trl); they sample with random
numbers of their own, so the two runs are two draws. Every sixth step is a deep one. Prints what
`entropy-lab analyze` prints of each. DIR/trl and DIR/ours are left for other commands.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.against_trl import Turns, run_trl, settings
from entropy_lab.train.config import Config

DEEP_EVERY = 6


class Alone(Turns):
    """Nobody to take turns with."""

    def __init__(self) -> None:
        self.reward, self.parts = 0.0, {}

    def end(self) -> None:
        pass


def train_with_trl(config: Config, folder: Path) -> None:
    from entropy_lab.adapters.trl import attach

    watched = partial(attach, run_dir=folder / "trl", deep_every=DEEP_EVERY)
    run_trl(config, folder / "trl-checkpoints", Alone(), watched)


def train_ours(config: Config, folder: Path) -> None:
    from entropy_lab.record import create_run
    from entropy_lab.train import loop
    from entropy_lab.train.launch import saved
    from entropy_lab.train.progress import Progress

    create_run(folder / "ours", saved(config.to_dict()), seeds={"run": config.run.seed})
    with Progress(folder / "ours", config) as progress:
        loop.train(config, folder / "ours", None, progress)


def analyze(run: Path) -> None:
    from typer.testing import CliRunner

    from entropy_lab.cli import app

    print(CliRunner().invoke(app, ["analyze", str(run)]).output)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.trl_validation")
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/trl-validation"))
    options = parser.parse_args()
    if find_spec("trl") is None:
        print("trl is not installed, nothing to measure: pip install 'entropy-lab[train,trl]'")
        return
    torch.set_num_threads(1)
    extra: list[Any] = [f"probe.deep_every={DEEP_EVERY}", "probe.profile=full"]
    config = settings(options.rollouts, 1, extra)
    train_with_trl(config, options.out)
    train_ours(config, options.out)
    for name in ("trl", "ours"):
        analyze(options.out / name)


if __name__ == "__main__":
    main()
