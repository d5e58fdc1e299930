"""S1: what grows in a long run: open files, threads, memory, files and bytes of its directory.

    python -m benchmarks.soak [--steps N] [--max-log-mb MB]

A model of 20,000 parameters takes 2,400 probed steps with checkpoints, replay points, evaluations
and a limit on the log (`train.max_log_gb`), all kept as configured.

2,000 steps on 2 busy CPU cores, limit 6 MB (met at step 535); the last line is the closed run:

      step   open  threads   RSS MB   files   log MB  ckpt MB  replay MB  rest MB
      1494      7        7      604     294     4.28     0.36       0.46     5.63
      1660      7        7      604     320     4.39     0.36       0.46     6.28
      1826      7        7      604     352     4.49     0.54       0.46     6.89
      1992      7        7      611     377     4.61     0.54       0.47     7.51
      2000      6        6      652      43     2.64     0.54       0.47     2.50

Open files and threads +0 and +0 over the second half, 3.8 kB a step besides the log, 3 parts in the
end. Resident memory +8.7 kB a step missed its bar in that run, all in the last 200 steps: each
checkpoint then parsed all of metrics.jsonl to find the best one, and now reads its end alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._bars import line
from entropy_lab.record import create_run, open_run
from entropy_lab.train.checkpoint import complete_checkpoints
from entropy_lab.train.config import Config, load_config
from entropy_lab.train.loop import train
from entropy_lab.train.progress import Progress

SETTINGS = (
    "run.threads=1 task.digits=1 model.layers=1 model.hidden=32 model.intermediate=64 "
    "model.heads=2 model.warmup_iterations=300 model.warmup_sequences=16 model.warmup_ramp=5 "
    "rollout.prompts=8 rollout.group_size=4 train.micro_batch=16 train.checkpoint_every=20 "
    "train.keep_checkpoints=2 train.keep_best=reward train.replay_every=40 train.keep_replays=3 "
    "probe.deep_every=40 eval.every=200 eval.problems=8 eval.samples=4 task.held_out_share=0.2"
).split()
KEPT = {"checkpoints": 3, "replay": 3}  # two newest and the best; three


class Sample(NamedTuple):
    """The process and its run directory after a step; bytes."""

    step: int
    open_files: int
    threads: int
    resident: int
    files: int
    log: int
    checkpoints: int
    replay: int
    rest: int
    seconds: float


def settings(steps: int, max_log_mb: float, *more: str) -> Config:
    """Two steps a rollout."""
    limits = [f"train.rollouts={steps // 2}", f"train.max_log_gb={max_log_mb / 1000}"]
    return load_config(None, [*SETTINGS, *limits, *more])


@dataclass
class Watch:
    """Samples this process and the run in `run_dir` after every `every` steps."""

    run_dir: Path
    every: int
    begun: float = field(default_factory=time.perf_counter)
    samples: list[Sample] = field(default_factory=list)

    def look(self, step: int) -> None:
        status = dict(
            row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines()
        )
        sizes: dict[str, int] = {}
        count = 0
        for path in self.run_dir.rglob("*"):
            try:
                sizes_of = path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # a .tmp that got its name meanwhile
                continue
            top = path.relative_to(self.run_dir).parts[0]
            sizes[top] = sizes.get(top, 0) + sizes_of
            count += path.is_file()
        log = sum(sizes.pop(kind, 0) for kind in ("tokens", "samples"))
        own = [sizes.pop(kind, 0) for kind in ("checkpoints", "replay")]
        self.samples.append(
            Sample(
                step,
                len(os.listdir("/proc/self/fd")),
                int(status["Threads"]),
                int(status["VmRSS"].split()[0]) * 1024,
                count,
                log,
                *own,
                sum(sizes.values()),
                time.perf_counter() - self.begun,
            )
        )


class WatchedProgress(Progress):
    """The trainer's progress line, with a look at process and directory now and then."""

    watch: Watch

    def step(self, metrics: Mapping[str, Any], step: int, total: int) -> None:
        super().step(metrics, step, total)
        if step % self.watch.every == 0:
            self.watch.look(step)


def soak(config: Config, run_dir: Path, every: int) -> list[Sample]:
    """Train as `config` says and look every `every` steps; the last look is at the closed run."""
    create_run(run_dir, config.to_dict(), seeds={"run": config.run.seed})
    watch = Watch(run_dir, every)
    with WatchedProgress(run_dir, config) as progress:
        progress.watch = watch
        train(config, run_dir, None, progress)
    watch.look(config.train.rollouts * config.train.minibatches)
    return watch.samples


def table(samples: list[Sample]) -> None:
    names = ("step", "open", "threads", "RSS MB", "files", "log MB", "ckpt MB", "replay MB")
    print(("{:>10}" * 10).format(*names, "rest MB", "s"))
    for s in samples:
        mb = [v / 1e6 for v in (s.resident, s.log, s.checkpoints, s.replay, s.rest)]
        print(
            f"{s.step:>10}{s.open_files:>10}{s.threads:>10}{mb[0]:>10.0f}{s.files:>10}"
            f"{mb[1]:>10.2f}{mb[2]:>10.2f}{mb[3]:>10.2f}{mb[4]:>10.2f}{s.seconds:>10.0f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--max-log-mb", type=float, default=6.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        samples = soak(settings(args.steps, args.max_log_mb), run_dir, max(1, args.steps // 12))
        table(samples)
        half, end, closed = samples[len(samples) // 2 - 1], samples[-2], samples[-1]
        steps = end.step - half.step
        files, threads = end.open_files - half.open_files, end.threads - half.threads
        line("S1", "open files, second half", f"{files:+d}", "+0", files <= 0)
        line("S1", "threads, second half", f"{threads:+d}", "+0", threads <= 0)
        grown = (end.resident - half.resident) / 1e3 / steps
        line("S1", "resident memory a step, second half", f"{grown:+.1f} kB", "<= 5 kB", grown <= 5)
        limit = args.max_log_mb * 1e6
        line("S1", "tokens/ and samples/ over their limit", f"{closed.log / limit:.2f}", "<= 1.05",
             closed.log <= 1.05 * limit)  # fmt: skip
        rest = (end.rest - half.rest) / 1e3 / steps
        line("S1", "everything else a step", f"{rest:.1f} kB", "<= 10 kB", rest <= 10)
        kept = {kind: len(complete_checkpoints(run_dir, kind)) for kind in KEPT}  # type: ignore
        line("S1", "checkpoints, replay points kept", f"{[*kept.values()]}", f"{[*KEPT.values()]}",
             kept == KEPT)  # fmt: skip
        parts = sum(1 for _ in run_dir.rglob("part-*"))
        line("S1", "parts after the run", f"{parts}", "3", parts == 3)
        assert len(open_run(run_dir).steps()) == closed.step
    return 0


if __name__ == "__main__":
    sys.exit(main())
