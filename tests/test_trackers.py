"""Trackers get the numbers of metrics.jsonl, go on after a resume, and never stop a run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from entropy_lab import load
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.trackers import Tracking, numbers
from tiny import TINY, assert_same_run, metrics

EVALS = ["task.held_out_share=0.3", "eval.every=2", "eval.problems=6", "eval.samples=4"]
SHORT = [*TINY, "train.rollouts=3", "train.checkpoint_every=1", *EVALS]


class Journal(list):
    """What a stand-in was asked to do: (what, *arguments)."""

    def of(self, what: str) -> list[Any]:
        return [entry[1:] for entry in self if entry[0] == what]

    def numbers(self) -> dict[int, dict[str, float]]:
        found: dict[int, dict[str, float]] = {}
        for step, values in self.of("log"):
            found.setdefault(step, {}).update(values)
        return found


@pytest.fixture
def journal() -> Journal:
    return Journal()


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch, journal: Journal) -> str:
    class SummaryWriter:
        def __init__(self, log_dir: str, purge_step: int | None) -> None:
            journal.append(("open", log_dir, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            journal.append(("log", step, {name: value}))

        def add_text(self, title: str, text: str, step: int) -> None:
            journal.append(("alert", step, title, text))

        def close(self) -> None:
            journal.append(("close",))

    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    return "tensorboard"


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, journal: Journal) -> str:
    class Run:
        step = 0

        def log(self, values: dict[str, float], step: int) -> None:
            assert step >= self.step
            Run.step = step  # W&B goes on counting where the run was
            journal.append(("log", step, values))

        def alert(self, title: str, text: str) -> None:
            journal.append(("alert", title, text))

        def finish(self) -> None:
            journal.append(("close",))

    def init(**named: Any) -> Run:
        journal.append(("open", named))
        return Run()

    stand_in(monkeypatch, "wandb", init=init)
    return "wandb"


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch, journal: Journal) -> str:
    stand_in(
        monkeypatch,
        "trackio",
        init=lambda **named: journal.append(("open", named)),
        log=lambda values, step: journal.append(("log", step, values)),
        alert=lambda title, text: journal.append(("alert", title, text)),
        finish=lambda: journal.append(("close",)),
    )
    return "trackio"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_every_number_of_the_log_and_every_evaluation_is_told(
    tmp_path: Path, name: str, journal: Journal, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(name)
    out = run_training(None, [*SHORT, f"tracker.name={name}"], tmp_path / "run")
    told = journal.numbers()
    for line in (json.loads(t) for t in (out / "metrics.jsonl").read_text().splitlines()):
        del line["tokens_through"]  # the writer's own, of what is on disk
        expected = {k: v for k, v in line.items() if k != "step" and type(v) in (int, float, bool)}
        assert expected.items() <= told[line["step"]].items()
    evals = load(out).evals()
    assert sorted(set(evals["step"])) == [0, 4, 6]
    for row in evals.to_dict("records"):
        prefix, values = f"eval/{row['benchmark']}", told[row["step"]]
        assert values[f"{prefix}/pass_at_{row['k']}"] == row["pass_at_k"]
        assert values[f"{prefix}/avg_at_k"] == row["avg_at_k"]
        assert values[f"{prefix}/entropy"] == row["entropy"]
    assert journal[-1] == ("close",) and len(journal.of("close")) == 1


def test_a_run_does_not_depend_on_its_tracker(tmp_path: Path, trackio: str) -> None:
    plain = run_training(None, SHORT, tmp_path / "plain")
    told = run_training(None, [*SHORT, "tracker.name=trackio"], tmp_path / "told")
    assert_same_run(plain, told)
    assert "tracker_run" not in load(plain).info


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_resumed_run_is_the_same_one_there(
    tmp_path: Path, name: str, journal: Journal, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(name)
    out = run_training(None, [*SHORT, f"tracker.name={name}"], tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step-000006")
    before, told = len(journal), journal.numbers()
    run_training(None, [], out, resume=True)
    first, second = journal.of("open")
    if name == "tensorboard":
        assert first == (str(out / "tensorboard"), None) and second == (first[0], 4)
    else:
        key = "id" if name == "wandb" else "name"
        assert first[0][key] == second[0][key] and first[0]["resume"] == "allow"
        assert first[0]["project"] == "entropy-lab"
        assert load(out).info["tracker_run"] in first[0][key]
    # W&B takes each step once: the repeated ones have the same values.
    again = Journal(journal[before:])
    assert set(again.numbers()) == ({6} if name == "wandb" else {4, 5, 6})
    if name != "wandb":  # TensorBoard hides all of step 4, the evaluation before it included
        assert "eval/arithmetic_heldout/avg_at_k" in again.numbers()[4]
    timeless = {
        step: {k: v for k, v in values.items() if not k.startswith("time_")}
        for step, values in journal.numbers().items()
    }
    for step, values in told.items():
        assert timeless[step] == {k: v for k, v in values.items() if not k.startswith("time_")}


def line(step: int, alarm: bool) -> dict[str, Any]:
    rings = {"alarm_half_steps": 40.0, "alarm_quadrant": "pos_likely"}
    return {"step": step, "reward": 0.5, "alarm": alarm, **(rings if alarm else {})}


def test_the_alarm_is_told_when_it_starts_to_ring(
    tmp_path: Path, journal: Journal, trackio: str
) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    tracking = Tracking(load_config(None, ["tracker.name=trackio"]), tmp_path, 0)
    for step, alarm in enumerate([False, True, True, False, True]):
        tracking.step(line(step, alarm))
    text = "entropy halves in about 40 steps, mostly from pos_likely"
    assert journal.of("alert") == [
        ("entropy collapse", f"step 1: {text}"), ("entropy collapse", f"step 4: {text}")
    ]  # fmt: skip


def test_numbers_leaves_out_what_is_none() -> None:
    found = numbers({"step": 3, "a": 1, "b": True, "c": None, "d": float("nan"), "e": "x"})
    assert found == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("at", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    journal: Journal,
    trackio: str,
    at: str,
) -> None:
    calls = []

    def fail(*_: object, **__: object) -> None:
        calls.append(at)
        raise ConnectionError("no route to host\nand more lines")

    monkeypatch.setattr(sys.modules["trackio"], at, fail)
    out = run_training(None, [*SHORT, "tracker.name=trackio"], tmp_path / "run")
    warnings = [t for t in capsys.readouterr().err.splitlines() if t.startswith("warning:")]
    assert warnings == [
        "warning: trackio failed and is left out from here on: no route to host; metrics.jsonl "
        "has everything"
    ]
    assert len(calls) == 1 and len(metrics(out)) == 6
    assert load(out).info["status"] == "finished"


def test_a_tracker_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = run_training(None, [*SHORT, "tracker.name=wandb"], tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("warning: wandb failed") == 1
    assert "pip install 'entropy-lab[track]'" in said and len(metrics(out)) == 6


def test_a_tracker_can_be_chosen_when_a_run_goes_on(
    tmp_path: Path, journal: Journal, trackio: str
) -> None:
    out = run_training(None, [*SHORT, "train.rollouts=2"], tmp_path / "run")
    run_training(None, ["train.rollouts=3", "tracker.name=trackio"], out, resume=True)
    assert sorted(journal.numbers()) == [4, 5, 6]
    assert load(out).info["config"]["tracker"]["name"] == "trackio"
