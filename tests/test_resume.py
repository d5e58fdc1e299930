"""--resume never destroys what it cannot continue."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from entropy_lab import load
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.record import run_lock
from entropy_lab.train import launch
from entropy_lab.train.launch import run_training
from tiny import TINY, assert_same_run
from toy import Toy, adamw, run_loop

SHORT = [*TINY, "train.rollouts=4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(None, SHORT, tmp_path_factory.mktemp("runs") / "short")


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def contents(run: Path) -> dict[str, bytes]:
    files = (p for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def test_a_run_of_somebodys_own_loop_is_refused_untouched(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    model = Toy()
    run_loop(model, adamw(model), out)
    before = contents(out)
    with pytest.raises(ConfigError, match="holds no settings of `entropy-lab train`"):
        run_training(None, [], out, resume=True)
    assert contents(out) == before


@pytest.mark.parametrize("status", ["finished", "running"])
def test_lost_checkpoints_are_an_error_not_a_fresh_start(
    finished: Path, tmp_path: Path, status: str
) -> None:
    out = copy(finished, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**info, "status": status}))
    before = contents(out)
    with pytest.raises(RunError, match=r"no complete checkpoint .* has reached step 7"):
        run_training(None, ["train.rollouts=9"], out, resume=True)
    assert contents(out) == before


def test_a_dry_resume_prints_and_changes_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy(finished, tmp_path / "run")
    before = contents(out)
    run_training(None, ["train.rollouts=9"], out, resume=True, dry_run=True)
    assert "9 rollouts" in capsys.readouterr().out
    assert contents(out) == before


def resume(out: Path, *settings: str, dry_run: bool = False) -> None:
    run_training(None, list(settings), out, resume=True, dry_run=dry_run)


def test_a_resume_says_what_it_found_and_what_it_drops(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps 0 to 7 are logged; checkpoints are at 4 and 8."""
    out = copy(finished, tmp_path / "run")
    whole = f"resuming from {out}/checkpoints/step-000008: going on at step 8, rollout 5 of 6\n"
    resume(out, "train.rollouts=6", dry_run=True)
    said = capsys.readouterr().out
    assert whole in said and "dropping" not in said
    shutil.rmtree(out / "checkpoints" / "step-000008")
    (out / "checkpoints" / "step-000008.tmp").mkdir()
    rest = (
        f"resuming from {out}/checkpoints/step-000004: going on at step 4, rollout 3 of 4\n"
        "dropping 4 logged steps beyond it (4 to 7), to be taken again\n"
    )
    resume(out, dry_run=True)
    assert rest in capsys.readouterr().out and load(out).last_step == 7
    resume(out)
    assert capsys.readouterr().out.startswith(rest)
    assert_same_run(finished, out)
    assert not list((out / "checkpoints").glob("*.tmp"))


def test_a_run_without_a_checkpoint_says_that_it_starts_anew(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy(finished, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**info, "status": "running"}))
    first = (out / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (out / "metrics.jsonl").write_text(first)
    resume(out)
    assert capsys.readouterr().out.startswith(
        f"{out} has no checkpoint yet: going on at step 0, rollout 1 of 4\n"
        "dropping 1 logged step beyond it (0), to be taken again\n"
    )
    assert_same_run(finished, out)


def test_a_checkpoint_beyond_a_lost_log_goes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine died and took lines with it: the checkpoint of step 8 has no log behind it."""
    out = copy(finished, tmp_path / "run")
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:6]))
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_train", lambda *given: True)
        resume(out)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000004"]
    assert load(out).last_step == 3
    resume(out)
    assert_same_run(finished, out)


def test_a_run_that_is_being_written_is_refused(finished: Path, tmp_path: Path) -> None:
    out = copy(finished, tmp_path / "run")
    before = contents(out)
    with run_lock(out):
        with pytest.raises(RunError, match="is being written by another process"):
            run_training(None, ["train.rollouts=9"], out, resume=True)
    assert contents(out) == before


def test_a_damaged_last_line_falls_back_to_the_checkpoint_before(tmp_path: Path) -> None:
    whole = run_training(None, [*TINY, "train.rollouts=6"], tmp_path / "whole")
    out = run_training(None, SHORT, tmp_path / "run")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("\n".join([*lines[:-1], "garbage"]) + "\n")
    run_training(None, ["train.rollouts=6"], out, resume=True)
    assert_same_run(whole, out)


def test_infinite_settings_survive_the_run_json(tmp_path: Path) -> None:
    settings = [*TINY, "train.rollouts=2", "method.clip_high=inf"]
    out = run_training(None, settings, tmp_path / "run")
    assert json.loads((out / "run.json").read_text())["config"]["method"]["clip_high"] == "inf"
    run_training(None, ["train.rollouts=3"], out, resume=True)
    assert load(out).last_step == 5


def test_divergence_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="diverged.* lower optimizer.lr"):
        run_training(None, [*TINY, "optimizer.lr=1e30"], tmp_path / "run")
    assert load(tmp_path / "run").info["status"] == "failed"


@pytest.mark.parametrize(
    "change",
    [{"config": [1]}, {"config": {"method": "grpo"}}, {"dropped_windows": "many"}],
)
def test_a_run_json_of_the_wrong_shape_is_named(finished: Path, tmp_path: Path, change) -> None:
    out = copy(finished, tmp_path / "run")
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**info, **change}))
    with pytest.raises(RunError, match="run.json is not as entropy-lab wrote it"):
        run_training(None, [], out, resume=True)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        pass
    code = f"from entropy_lab.record import run_lock\nwith run_lock({str(tmp_path)!r}): pass"
    start = [sys.executable, "-c", code]
    with run_lock(tmp_path):
        assert b"is being written" in subprocess.run(start, capture_output=True).stderr
    subprocess.run(start, check=True)
