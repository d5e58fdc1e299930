"""What the probe adds to the update of a loop that is not ours, by the share of rows measured.

    python -m benchmarks.loop_cost

A model of transformers, 32 responses a step in two micro-batches of 16, AdamW. Probed steps and
steps without a pass take turns in one run; medians of the CPU seconds of the training thread from
the first loss forward to the end of optimizer.step(), over those of the steps between.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from entropy_lab import Probe, TokenBatch, token_stats

P, T, B, MICRO, V = 16, 48, 32, 16, 512
ROWS: dict[str, dict[str, Any]] = {
    "all rows": {"floor_every": 0},
    "1/8 of the rows": {"floor_every": 0, "fraction": 1 / 8},
    "one response a micro-batch": {"floor_every": 0, "fraction": 1 / 32},
    "all rows, checks (a floor step)": {"floor_every": 1},
    "all rows, path forms and influence (a deep step)": {"floor_every": 0, "deep_every": 1},
    "the same with jvp=slope": {"floor_every": 0, "deep_every": 1, "jvp": "slope"},
}


def added_share(folder: Path, steps: int = 14, **options: Any) -> float:
    """Time of a probed step over that of one that is not, minus 1."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4,
        )  # fmt: skip
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def score(ids: torch.Tensor):
        return token_stats(model(ids).logits[:, P - 1 : -1], ids[:, P:])

    seconds: dict[bool, list[float]] = {True: [], False: []}
    with Probe(model, optimizer, folder, score, every=2, tell_cost=False, **options) as probe:
        for step in range(steps):
            ids = torch.randint(V, (B, P + T))
            advantage = torch.randn(B, 1).expand(-1, T)
            with torch.no_grad():
                old = score(ids).logp
            probe.commit()
            started = time.thread_time()
            for rows in torch.arange(B).split(MICRO):
                mine = ids[rows]
                mask = torch.ones(len(rows), T, dtype=torch.bool)
                batch = TokenBatch(mine[:, P:], mask, advantage[rows], old[rows])
                stats = probe.record(mine, batch)
                ratio = torch.exp(stats.logp - old[rows])
                (-(ratio * advantage[rows]).mean() * len(rows) / B).backward()
            probe.note(kappa=1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step >= 2:  # the first of each kind compare and allocate
                seconds[step % 2 == 0].append(time.thread_time() - started)
    return statistics.median(seconds[True]) / statistics.median(seconds[False]) - 1


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="entropy-lab-bench-"))
    try:
        for number, (name, options) in enumerate(ROWS.items()):
            print(f"{name:<50} +{added_share(folder / str(number), **options):.0%}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
