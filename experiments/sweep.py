"""Many runs of one experiment: every arm with every seed, in parallel processes, resumable.

A run that is finished is left alone, one that was interrupted is resumed, and one that cannot be
(its settings have changed) is named. Each process has one thread, so that runs are bit for bit
those of any other machine of the same kind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from entropy_lab.errors import EntropyLabError
from entropy_lab.record import open_run

ROOT = Path(__file__).parents[1]
CONFIGS = Path(__file__).parent / "configs"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Job:
    """One run: its directory and the words after `entropy-lab train`."""

    out: Path
    config: Path
    overrides: tuple[str, ...]

    def command(self) -> list[str]:
        program = [sys.executable, "-m", "entropy_lab", "train"]
        if (self.out / "run.json").exists():
            return [*program, "--resume", "--out", str(self.out)]
        words = [word for text in self.overrides for word in ("--set", text)]
        return [*program, str(self.config), *words, "--out", str(self.out)]

    def settings(self) -> str:
        text = self.config.read_text(encoding="utf-8")
        return json.dumps({"config": text, "overrides": self.overrides}, indent=1)

    def state(self) -> str:
        """finished, new, resumable or changed."""
        kept = self.out / SETTINGS
        if not (self.out / "run.json").exists():
            return "new"
        if kept.exists() and kept.read_text(encoding="utf-8") != self.settings():
            return "changed"
        try:
            status = open_run(self.out).info["status"]
        except EntropyLabError:
            return "changed"
        return "finished" if status == "finished" else "resumable"


def jobs_of(
    experiment: str,
    arms: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    runs: Path,
    shared: Sequence[str] = (),
) -> list[Job]:
    """The runs of an experiment, seed by seed, so that a part of them compares all arms.

    arms: overrides of each arm's settings; runs are RUNS/EXPERIMENT/ARM-sSEED.
    """
    config = CONFIGS / f"{experiment}.toml"
    return [
        Job(
            runs / experiment / f"{arm}-s{seed}",
            config,
            (*shared, *overrides, f"run.seed={seed}", f'run.name="{arm}"'),
        )
        for seed in seeds
        for arm, overrides in arms.items()
    ]


def sweep(jobs: Sequence[Job], processes: int) -> list[Path]:
    """Run what is not finished; returns the finished run directories, in order.

    Prints a line a run. A run that fails is named with its last line and left for the next time.
    """
    changed = [job.out for job in jobs if job.state() == "changed"]
    if changed:
        sys.exit(
            f"made with other settings: {', '.join(map(str, changed))}; remove them or take "
            "another --runs folder"
        )
    todo = [job for job in jobs if job.state() != "finished"]
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them finished", flush=True)
    started = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        for done, (job, problem) in enumerate(pool.map(_run, todo), start=1):
            left = (time.perf_counter() - started) / done * (len(todo) - done)
            note = f"failed: {problem}" if problem else "done"
            print(f"{done}/{len(todo)} {job.out.name} {note}; {left / 60:.0f} min left", flush=True)
    return [job.out for job in jobs if job.state() == "finished"]


def _run(job: Job) -> tuple[Job, str]:
    job.out.mkdir(parents=True, exist_ok=True)
    command = job.command()
    (job.out / SETTINGS).write_text(job.settings(), encoding="utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return job, ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return job, lines[-1] if lines else f"exit code {done.returncode}"
