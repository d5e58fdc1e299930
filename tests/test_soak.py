"""A long run in short: nothing that a process or a directory holds grows with its steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from benchmarks.soak import KEPT, settings, soak
from entropy_lab import load
from entropy_lab.analysis.doctor import doctor
from entropy_lab.train.checkpoint import complete_checkpoints

STEPS, LIMIT_MB = 160, 0.5
OFTEN = ("train.replay_every=10", "train.checkpoint_every=10", "eval.every=40")


def test_open_files_threads_and_directory_stay_bounded(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    *samples, closed = soak(settings(STEPS, LIMIT_MB, *OFTEN), run_dir, every=20)
    assert len({(s.open_files, s.threads) for s in samples[4:]}) == 1  # libraries start some late
    assert closed.open_files < samples[0].open_files and closed.threads < samples[-1].threads
    # Eight of each are made, three are kept.
    for kind in ("checkpoints", "replay"):
        sizes = [getattr(s, kind) for s in samples]
        one = max(after - before for before, after in pairwise([0, *sizes]))
        assert max(sizes) <= 3.5 * one, (kind, sizes)
    for kind, count in KEPT.items():
        assert len(complete_checkpoints(run_dir, kind)) <= count  # type: ignore[arg-type]
    run = load(run_dir)
    full = run.metrics()["log_full"]
    assert not full.iloc[STEPS // 4] and full.iloc[-STEPS // 4]
    assert closed.log <= LIMIT_MB * 1e6
    assert closed.files < samples[-1].files and len(list(run_dir.rglob("part-*"))) == 3
    assert run.steps()["step"].tolist() == [*range(STEPS)]
    found = {f.check: f for f in doctor(run_dir).findings}
    assert found["token_steps"].level == "note", found["token_steps"]
    assert doctor(run_dir).healthy, doctor(run_dir).lines()
