"""Training on data files: in their order, without repeats, and bit for bit after a resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_files import jsonl, parquet, question, tiny_folder, verl_rows
from entropy_lab import cli, load
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.train import loop
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.parts import Parts
from entropy_lab.train.tasks import Data, Place, Problem, make_task
from tiny import assert_same_run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet (11 problems, 4 to a rollout), test.parquet (3) and a model that reads them."""
    folder = tmp_path_factory.mktemp("files")
    text = parquet(folder / "train.parquet", verl_rows(11))
    parquet(folder / "test.parquet", verl_rows(3, first=100, source="other"))
    tiny_folder(folder / "model", text)
    return folder


def settings(files: Path, *more: str) -> list[str]:
    return [
        "run.threads=1",
        "task.name=data",
        f"task.train={files}/train.parquet",
        f"task.validation={files}/test.parquet",
        f"model.path={files}/model",
        "rollout.prompts=4",
        "rollout.group_size=2",
        "rollout.max_tokens=6",
        "train.rollouts=6",
        "train.micro_batch=4",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=0",
        "probe.fixed_responses=4",
        "probe.floor_every=3",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rollouts of four problems: two epochs of eleven and two problems more."""
    evaluated = settings(files, "eval.every=2", "eval.samples=2")
    return run_training(None, evaluated, tmp_path_factory.mktemp("runs") / "whole")


def asked(run: Path) -> list[str]:
    """The prompts of the run's rollouts in their order, one for each group."""
    samples = load(run).samples()
    return samples.sort_values("uid").groupby("group", sort=True)["prompt"].first().tolist()


def test_each_epoch_asks_every_problem_once(whole: Path) -> None:
    prompts = asked(whole)
    assert len(prompts) == 24
    every = sorted(f"user: {question(i)}" for i in range(11))
    assert sorted(prompts[:11]) == sorted(prompts[11:22]) == every
    assert prompts[:11] != prompts[11:22] and prompts[:11] != every
    samples = load(whole).samples()
    assert samples.groupby("prompt")["prompt_id"].nunique().eq(1).all()
    assert samples["prompt_id"].nunique() == 11


def test_run_json_and_the_validation_files_in_the_evaluations(whole: Path) -> None:
    data = load(whole).info["data"]
    assert [(d["rows"], d["used"], d["overlong"], d["bad"]) for d in data["train"]] == [
        (11, 11, 0, 0)
    ]
    assert data["epoch"] == 11 and len(data["fingerprint"]) == 16
    evals = load(whole).evals()
    assert set(evals["benchmark"]) == {"test"} and set(evals["n"]) == {3}
    assert sorted(set(evals["step"])) == [0, 4, 8, 12]


@pytest.mark.parametrize("rollout", [1, 3, 5])
def test_a_run_killed_within_an_epoch_goes_on_bit_for_bit(
    files: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollout: int
) -> None:
    class Killed(BaseException):
        pass

    original = loop.begin_rollout

    def killing(parts, steps, memory):
        if parts.probe.step == 2 * rollout:
            raise Killed
        return original(parts, steps, memory)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "begin_rollout", killing)
        with pytest.raises(Killed):
            run_training(None, settings(files, "eval.every=2", "eval.samples=2"), out)
    run_training(None, [], out, resume=True)
    assert_same_run(whole, out)
    assert asked(out) == asked(whole)


def test_doctor_scores_chats_as_the_model_read_them(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "files"
    shutil.copytree(files, own)
    out = run_training(None, settings(own, "train.rollouts=1"), tmp_path / "run")
    capsys.readouterr()
    cli.run(["doctor", str(out), "--json"])
    checks = {c["check"]: c for c in json.loads(capsys.readouterr().out)["findings"]}
    assert checks["rescored"]["level"] == "ok" and "as logged" in checks["rescored"]["seen"]
    (own / "train.parquet").unlink()
    cli.run(["doctor", str(out)])
    assert "not re-scored: no such data file" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_problems(files: Path, tmp_path: Path) -> None:
    own = tmp_path / "files"
    shutil.copytree(files, own)
    out = run_training(None, settings(own, "train.rollouts=1"), tmp_path / "run")
    parquet(own / "train.parquet", verl_rows(12))
    with pytest.raises(RunError, match="training problems are not those that the run began with"):
        run_training(None, ["train.rollouts=2"], out, resume=True)
    parquet(own / "train.parquet", verl_rows(11))
    run_training(None, ["train.rollouts=2"], out, resume=True)
    assert load(out).last_step == 3


def test_what_is_left_out_is_said_in_a_line(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = jsonl(
        tmp_path / "mixed.jsonl",
        [{"prompt": "1+1?", "answer": "2"}, {"prompt": "x " * 500, "answer": "2"}, {"prompt": "1"}],
    )
    more = ["task.max_prompt_tokens=100", "train.rollouts=1", f"task.train={path}"]
    with pytest.raises(ConfigError, match="1 of 3 rows cannot be used: row 3 .no answer in 'answ"):
        run_training(None, settings(files, *more), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    capsys.readouterr()
    run_training(None, settings(files, *more, "task.bad_rows=skip"), tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "data: 1 problems to train on, 1 left out for their length; 3 problems to ev" in said
    assert f"{path}: 1 of 3 rows cannot be used: row 3 (no answer in 'answer')" in said
    [train] = load(tmp_path / "run").info["data"]["train"]
    assert (train["used"], train["overlong"], train["bad"]) == (1, 1, 1)
    assert train["bad_rows"] == [[path, 3, "no answer in 'answer'"]]


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["task.train=[]"], "task data needs files to train on: set task.train to their paths"),
        (
            ["task.weights=[1, 2]"],
            "task.weights has 2 numbers for the 1 paths of task.train: give one for each, or none",
        ),
        (["task.weights=[0]"], "task.weights.0 must be greater than 0, got 0"),
        (["task.train=3"], "task.train must be a valid list, got 3"),
        (["task.bad_rows=drop"], 'task.bad_rows must be "refuse" or "skip", got "drop"'),
        (["task.prompt=x"], "unknown key task.prompt of task data; did you mean prompt_key?"),
        (
            ["model.path="],
            "task data has no worked examples to make a model from: set model.path to the folder",
        ),
        (
            ["task.validation=[]", "eval.every=1"],
            "eval.every = 1 needs eval.problems = 64 held-out problems, but task data has none: "
            "set task.validation to files",
        ),
    ],
)
def test_wrong_settings_are_one_line(files: Path, change: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, settings(files, *change))
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_lists_and_bare_paths_survive_toml_and_json(files: Path, tmp_path: Path) -> None:
    more = ['task.train=["a.parquet", "b.jsonl"]', "task.weights=[1, 0.5]"]
    config = load_config(None, settings(files, *more))
    file = tmp_path / "again.toml"
    file.write_text(config.to_toml())
    assert load_config(file) == config
    task = make_task("data", **json.loads(json.dumps(config.task.params)))
    assert isinstance(task, Data)
    assert task.train == ["a.parquet", "b.jsonl"] and task.weights == [1.0, 0.5]
    assert task.validation == [f"{files}/test.parquet"]


def test_a_missing_file_is_one_line_of_the_command(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w for s in settings(files, "task.train=no.parquet") for w in ("--set", s)]
    assert cli.run(["train", *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no such data file: no.parquet (seen from ")


def test_a_dry_run_says_what_is_evaluated(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for problems, said in ((0, "every problem of"), (9, "up to 9 problems of")):
        more = settings(files, "eval.every=2", "eval.samples=3", f"eval.problems={problems}")
        run_training(None, more, tmp_path / "run", dry_run=True)
        text = f"# 4 evaluations: 3 responses to {said} each file of task.validation\n"
        assert text in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_two_validation_files_of_one_name_are_refused(files: Path, tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", verl_rows(2))
    both = [f"{files}/test.parquet", f"{tmp_path}/test.parquet"]
    task = Data(train=[f"{files}/train.parquet"], validation=both)
    with pytest.raises(ConfigError, match="are both named 'test': rename one"):
        task.source(lambda prompt: [0])


def without_a_model(files: Path) -> Parts:
    """The parts of a run, as far as a draw of problems needs them."""
    config = load_config(None, settings(files))
    needed = [f for f in fields(Parts) if f.default is MISSING and f.default_factory is MISSING]
    given: dict[str, Any] = dict.fromkeys(f.name for f in needed)
    given |= {"config": config, "task": make_task("data", **config.task.params)}
    return Parts(**given | {"tokenizer": SimpleNamespace(encode=lambda text: [0])})


def test_what_replaces_problems_of_a_rollout_takes_the_next_of_its_stream(files: Path) -> None:
    """As does the next rollout: eleven draws ask every problem once, whatever their sizes."""
    parts = without_a_model(files)
    draws = [("rollout", 0, 4), ("rollout replacement 1", 0, 2), ("fixed", 0, 3)]
    draws += [("rollout replacement 2", 0, 1), ("rollout", 1, 4)]
    found = {(name, number): parts.draw(n, name, number) for name, number, n in draws}
    fixed = found.pop(("fixed", 0))
    assert parts.drawn == {"rollout": 11, "fixed": 3} and len(fixed) == 3
    asked = [p for problems in found.values() for p in problems]
    assert len({p.prompt_id for p in asked}) == len(asked) == 11
    resumed = without_a_model(files)
    resumed.drawn["rollout"] = 7
    assert resumed.draw(4, "rollout", 1) == found["rollout", 1]


def test_streams_are_their_own_and_benchmarks_hold_each_problem_once(
    files: Path, tmp_path: Path
) -> None:
    parquet(tmp_path / "often.parquet", [row for row in verl_rows(5) for _ in range(32)])
    task = Data(train=[f"{files}/train.parquet"], validation=[f"{tmp_path}/often.parquet"])
    source = task.source(lambda prompt: [0])

    def drawn(n: int, seed: int, stream: str, first: int) -> list[Problem]:
        return source.draw(n, Place(seed, f"{stream} of any name", first + 9, stream, first))

    rollout = drawn(11, 0, "rollout", 0)
    assert len({p.prompt_id for p in rollout}) == 11
    assert drawn(4, 0, "rollout", 7) == rollout[7:]
    assert drawn(11, 0, "fixed", 0) != rollout and drawn(11, 1, "rollout", 0) != rollout
    answers = [p.answer for p in source.benchmarks(0)["often"]]
    assert answers == ["0", "2", "4", "6", "8"]
    assert [p.answer for p in source.benchmarks(2)["often"]] == ["0", "2"]
