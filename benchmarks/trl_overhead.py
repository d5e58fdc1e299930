"""What `attach` adds to a TRL run on the packaged demo's job, at three shares of probed responses.

    pip install 'entropy-lab[train,trl]'
    python -m benchmarks.trl_overhead [--rollouts N] [--threads N]

The job and TRL's settings are those of benchmarks.against_trl: two optimizer steps of 128 responses
a rollout, 0.6 M parameters, float32. Sides: TRL alone; attach with its defaults (every step, the
next step's responses held out) at fraction 1, 1/8 and 1/32; fraction 1 without held-out responses.
No bar: the table shows what to expect. A process each; they take turns, rollout by rollout and in
changing order, so that a busy machine slows all of them alike. Medians over rollouts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
from collections import defaultdict
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.against_trl import WARM, Turns, run_trl, settings
from entropy_lab.train.config import Config

SIDES: dict[str, dict[str, Any] | None] = {
    "TRL alone": None,
    "fraction 1": {},
    "fraction 1, no held-out": {"held_out": False},
    "fraction 1/8": {"fraction": 1 / 8},
    "fraction 1/32": {"fraction": 1 / 32},
}


def work(side: str, config: Config, folder: Path, pipe: Connection) -> None:
    from entropy_lab.adapters.trl import attach

    torch.set_num_threads(config.run.threads)
    options = SIDES[side]
    watched = partial(attach, run_dir=folder / "run", tell_cost=False, **(options or {}))
    run_trl(config, folder / "trl", Turns(pipe), id if options is None else watched)
    pipe.send(None)


def measure(rollouts: int, threads: int, folder: Path) -> dict[str, list[dict]]:
    """Seconds of every side's rollouts; the order turns with the rollout."""
    from entropy_lab.train.model import load_model

    torch.set_num_threads(threads)
    config = settings(rollouts, threads, [])
    load_model(config)  # made once, before anybody's clock runs
    context = multiprocessing.get_context("spawn")
    pipes, workers, found = {}, [], defaultdict(list)
    for number, side in enumerate(SIDES):
        pipes[side], other = context.Pipe()
        arguments = (side, config, folder / f"{number}", other)
        workers.append(context.Process(target=work, args=arguments, daemon=True))
        workers[-1].start()
        other.close()
    order = list(SIDES)
    for number in range(rollouts):
        for side in order if number % 2 else reversed(order):
            pipes[side].send("go")
            found[side].append(pipes[side].recv())
        order.append(order.pop(0))
    for side, worker in zip(SIDES, workers, strict=True):
        pipes[side].send("go")
        pipes[side].recv()
        worker.join()
    return found


def report(found: dict[str, list[dict]], minibatches: int) -> None:
    def per_step(side: str, what: str) -> np.ndarray:
        return np.array([r[what] for r in found[side][WARM:]]) / minibatches

    plain, alone = list(SIDES)[0], {}
    print(f"{'':26}s a step   CPU s a step   over TRL alone [quartiles]   the same in CPU s")
    for side in SIDES:
        wall, cpu = per_step(side, "wall"), per_step(side, "cpu")
        alone = alone or {"wall": wall, "cpu": cpu}
        ratio = wall / alone["wall"]
        low, high = np.quantile(ratio, [0.25, 0.75])
        spread = "" if side == plain else f"{np.median(ratio):.2f} [{low:.2f}, {high:.2f}]"
        share = "" if side == plain else f"{np.median(cpu / alone['cpu']):.2f}"
        medians = f"{statistics.median(wall):8.3f} {statistics.median(cpu):14.3f}"
        print(f"{side:26}{medians} {spread:>28} {share:>19}")
    print(f"n = {len(found[plain]) - WARM} rollouts of {minibatches} steps")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.trl_overhead")
    parser.add_argument("--rollouts", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if find_spec("trl") is None:
        print("trl is not installed, nothing to measure: pip install 'entropy-lab[train,trl]'")
        return
    folder = Path(tempfile.mkdtemp(prefix="entropy-lab-bench-"))
    try:
        found = measure(options.rollouts, options.threads, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(found, settings(options.rollouts, options.threads, []).train.minibatches)


if __name__ == "__main__":
    main()
