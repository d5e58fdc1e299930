"""Evaluation during training: on schedule, without a trace in it, and the same after a resume."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from entropy_lab import cli, load
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.record import open_run
from entropy_lab.train import loop
from entropy_lab.train.interrupt import StopRequest
from entropy_lab.train.launch import run_training
from entropy_lab.train.rescore import open_rescorer
from entropy_lab.train.tasks import worked as worked_module
from tiny import TINY, assert_same_run

SPLIT = [*TINY, "task.held_out_share=0.3"]
EVALS = [*SPLIT, "eval.every=2", "eval.problems=6", "eval.samples=4"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rollouts of two steps, checkpoints and evaluations after every second rollout."""
    return run_training(None, EVALS, tmp_path_factory.mktemp("runs") / "whole")


def evals(run_dir: Path) -> bytes:
    return (run_dir / "evals.parquet").read_bytes()


def steps(run_dir: Path) -> list[int]:
    return sorted(set(load(run_dir).evals()["step"]))


def assert_same(a: Path, b: Path) -> None:
    assert_same_run(a, b)
    assert evals(a) == evals(b)


def test_evaluations_are_on_schedule_and_their_time_is_in_the_metrics(whole: Path) -> None:
    frame, lines = load(whole).evals(), load(whole).metrics()
    assert frame["step"].tolist() == [s for s in (0, 4, 8, 12) for _ in (1, 2, 4)]
    assert frame["k"].tolist() == [1, 2, 4] * 4
    assert set(frame["benchmark"]) == {"arithmetic_heldout"} and set(frame["n"]) == {6}
    assert set(frame["samples"]) == {4} and set(frame["max_tokens"]) == {12}
    ones = frame[frame["k"] == 1]
    assert ones["pass_at_k"].tolist() == pytest.approx(ones["avg_at_k"].tolist(), rel=1e-12)
    assert frame["entropy"].nunique() == 4  # the weights moved
    # The first one before step 0, the others after the last step of their rollout.
    assert lines["step"][lines["time_eval"] > 0].tolist() == [0, 3, 7, 11]


def test_training_does_not_depend_on_the_evaluation(whole: Path, tmp_path: Path) -> None:
    plain = run_training(None, SPLIT, tmp_path / "plain")
    assert_same_run(whole, plain)
    assert not (plain / "evals.parquet").exists()
    assert (load(plain).metrics()["time_eval"] == 0).all()
    with pytest.raises(RunError, match="has no evaluations: train with eval.every above 0"):
        load(plain).evals()


def test_no_response_of_the_run_is_to_a_held_out_problem(whole: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    original = worked_module.held_out_problems

    def noted(task, n):
        found = original(task, n)
        asked.extend(p.prompt for p in found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worked_module, "held_out_problems", noted)
        run_training(None, [*EVALS, "train.rollouts=1"], tmp_path / "run")
    run = load(whole)
    trained = set(run.samples()["prompt"])
    assert len(set(asked)) == 6 and len(trained) > 15 and not trained & set(asked)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_resume_from_an_older_checkpoint_equals_the_whole(
    whole: Path, tmp_path: Path, left: int
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    for path in sorted((out / "checkpoints").glob("step-*"))[left:]:
        shutil.rmtree(path)
    if not left:  # as if killed before the first checkpoint
        info = json.loads((out / "run.json").read_text())
        (out / "run.json").write_text(json.dumps(info | {"status": "running"}))
        lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
        (out / "metrics.jsonl").write_text("".join(lines[:3]))
    run_training(None, [], out, resume=True)
    assert_same(whole, out)


class Killed(BaseException):
    """Stands for the process ending at this very call."""


@pytest.mark.parametrize("name", ["save_checkpoint", "evaluate_if_due"])
@pytest.mark.parametrize("call", [2, 3])
def test_killed_around_an_evaluation_resumes_to_the_whole(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    """Between an evaluation and the checkpoint of its weights, or inside of an evaluation."""
    original, calls = getattr(loop, name), []

    def killing(*args, **kwargs):
        if name == "save_checkpoint" or args[0].probe.step % 4 == 0:
            calls.append(args)
            if len(calls) == call:
                raise Killed
        return original(*args, **kwargs)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, name, killing)
        with pytest.raises(Killed):
            run_training(None, EVALS, out)
    run_training(None, [], out, resume=True)
    assert_same(whole, out)


def test_a_stop_off_schedule_leaves_no_extra_evaluation(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def at_once(*_):
        request = StopRequest()
        request.asked = True
        yield request

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_request", at_once)
        with pytest.raises(KeyboardInterrupt):
            run_training(None, EVALS, out)
    assert steps(out) == [0] and load(out).last_step == 1
    run_training(None, [], out, resume=True)
    assert evals(out) == evals(whole)


def test_a_run_that_is_extended_keeps_the_evaluation_at_its_former_end(
    whole: Path, tmp_path: Path
) -> None:
    out = run_training(None, [*EVALS, "train.rollouts=3"], tmp_path / "run")
    assert steps(out) == [0, 4, 6]
    run_training(None, ["train.rollouts=6"], out, resume=True)
    frame, expected = load(out).evals(), load(whole).evals()
    assert steps(out) == [0, 4, 6, 8, 12]
    assert frame[frame["step"] != 6].reset_index(drop=True).equals(expected)


def test_a_run_keeps_its_evaluation_when_it_goes_on(whole: Path) -> None:
    with pytest.raises(ConfigError, match="eval.every cannot change when a run is continued"):
        run_training(None, ["eval.every=1"], whole, resume=True)


def test_runs_from_before_there_were_evaluations_go_on(tmp_path: Path) -> None:
    out = run_training(None, [*TINY, "train.rollouts=2"], tmp_path / "run")
    info = json.loads((out / "run.json").read_text())
    del info["config"]["eval"]
    (out / "run.json").write_text(json.dumps(info))
    assert open_rescorer(out).step == 4
    run_training(None, ["train.rollouts=3"], out, resume=True)
    assert open_run(out).last_step == 5


def test_the_command_line_says_what_is_wrong_and_what_will_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(*settings: str) -> int:
        words = [word for text in settings for word in ("--set", text)]
        return cli.run(["train", *words, "--dry-run"])

    assert train("eval.every=5") == 2
    assert capsys.readouterr().err == (
        "error: eval.every = 5 needs eval.problems = 64 held-out problems, but task arithmetic "
        "holds no problems out: set task.held_out_share, for example to 0.1\n"
    )
    assert train("eval.samples=4", "eval.max_k=8") == 2
    assert "error: eval.max_k = 8 is more than eval.samples = 4" in capsys.readouterr().err
    assert train("eval.every=25", "task.held_out_share=0.1") == 0
    said = capsys.readouterr().out
    assert "# 4 evaluations: 64 responses to each of 64 problems" in said  # 0, 25, 50, 60
    assert "[eval]\nevery = 25\nproblems = 64" in said and "held_out_share = 0.1" in said
    assert train() == 0
    assert "evaluations" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
