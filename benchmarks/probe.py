"""Bars C7, C8, C9 (exactness of the measurement) and P1 (its cost), on the demo's model and task.

    python -m benchmarks.probe

Cost: the update phase (statistics pass, forward, backward, optimizer) of probed steps over that of
steps without the probe, in one run that turns it on and off every three rollouts; medians, in CPU
seconds of the training thread, so that other users of the cores change little.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks._bars import line
from entropy_lab import load
from entropy_lab.probe.floor import entropy64
from entropy_lab.record import create_run
from entropy_lab.train import loop
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.loop import update
from entropy_lab.train.parts import Parts, build
from entropy_lab.train.progress import Progress

BASE = ["probe.deep_every=0", "probe.floor_every=1000", "train.checkpoint_every=0"]
BLOCK = 3  # rollouts
COSTS = {
    "training rows only": (["probe.held_out=false", "probe.fixed_responses=0"], 0.40),
    "with held-out rows": ([], 0.75),
    "1/8 of both": (["probe.fraction=0.125", "probe.fixed_responses=0"], 0.20),
}


def zero_rate(folder: Path) -> None:
    out = run_training(None, [*BASE, "optimizer.lr=0.0", "train.rollouts=2"], folder / "zero")
    tokens = load(out).tokens()
    worst = float(tokens["dH"].abs().max())
    line("C7", f"lr = 0, {len(tokens):,} rows, max |dH|", f"{worst:.1e}", "== 0.0", worst == 0.0)


def floor(folder: Path) -> None:
    settings = [*BASE, "train.rollouts=4", "probe.floor_every=1"]
    steps = load(run_training(None, settings, folder / "floor")).steps()
    value = float(steps["floor"].max())
    line("C8", "floor, float32, worst of 8 steps, nats", f"{value:.1e}", "<= 3e-6", value <= 3e-6)


def small_step(folder: Path) -> None:
    """dH of one step at lr 1e-6 against the same step's weights in float64, all rows."""
    config = load_config(None, [*BASE, "optimizer.lr=1e-6", "probe.fixed_responses=0"])
    run_dir = create_run(folder / "small", config.to_dict(), seeds=0)
    with Progress(run_dir, config) as progress:
        parts, _, _ = build(config, run_dir, None, progress)
    with parts.probe as probe:
        micros = parts.micros(parts.sample(config.rollout.prompts, "rollout", 0), 0, 2)[0]
        named = dict(parts.model.named_parameters())
        start = {n: p.detach().clone() for n, p in named.items()}
        before = [probe.scorer.measure(m.inputs).entropy for m in micros]
        update(parts, micros, [], 0, {})
        after = [probe.scorer.measure(m.inputs).entropy for m in micros]
        end = {n: p.detach() for n, p in named.items()}
        masks = torch.cat([m.batch.mask.flatten() for m in micros])
        found = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])[masks]
        exact = torch.cat(
            [
                (
                    entropy64(parts.model, probe.scorer.score, m.inputs, end)
                    - entropy64(parts.model, probe.scorer.score, m.inputs, start)
                ).flatten()
                for m in micros
            ]
        )[masks]
    found, exact = found.double().numpy(), exact.numpy()
    pcc = float(np.corrcoef(found, exact)[0, 1])
    off = abs(found.mean() / exact.mean() - 1)
    line("C9", "dH at lr 1e-6 against float64, correlation", f"{pcc:.5f}", ">= 0.999", pcc >= 0.999)
    line("C9", "the same, error of the mean", f"{off:.2%}", "<= 1 %", off <= 0.01)


def share_of_update(out: Path, settings: list[str], blocks: int = 4) -> float:
    seconds: dict[tuple[int, int], list[float]] = {}

    def timed(parts: Parts, micros: list, later: list, rollout: int, memory: dict) -> dict:
        block, place = divmod(rollout, BLOCK)
        probed = block % 2
        parts.probe.cadence = replace(parts.probe.cadence, every=probed)
        start = time.thread_time()
        memory = update(parts, micros, later, rollout, memory)
        if place:  # the first rollout after a change lacks what is remembered from the last step
            key = probed, parts.probe.step % 2
            seconds.setdefault(key, []).append(time.thread_time() - start)
        return memory

    rollouts = f"train.rollouts={2 * blocks * BLOCK}"
    with patch.object(loop, "update", timed):
        run_training(None, [*BASE, rollouts, *settings], out)
    # Both ages count alike: held-out rows cost differently at each.
    on, off = (sum(statistics.median(seconds[p, age]) for age in (0, 1)) for p in (1, 0))
    return on / off - 1


def cost(folder: Path) -> None:
    for name, (settings, demand) in COSTS.items():
        share = share_of_update(folder / name.replace("/", "-"), settings)
        line("P1", f"probe, {name}", f"{share:.0%}", f"<= {demand:.0%}", share <= demand)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="entropy-lab-bench-"))
    try:
        for part in (zero_rate, floor, small_step, cost):
            part(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
