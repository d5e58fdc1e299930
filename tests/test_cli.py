"""The command line: what it prints, its exit codes, and no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from entropy_lab import __version__, cli
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import INTERVENTIONS
from synthetic import write_run

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "demo"
    write_run(path, steps=12)
    assert cli.run(["analyze", str(path)]) == 0
    return path


def test_analyze_prints_a_summary_and_where_the_report_is(run: Path) -> None:
    result = RUNNER.invoke(cli.app, ["analyze", str(run)])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith("demo: grpo, 12 steps")
    assert lines[-1] == f"report: {run / 'analysis' / 'report.html'}"
    assert len(lines) <= 15


def test_analyze_json_is_json_alone(run: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(cli.app, ["analyze", str(run), "--json", "--out", str(tmp_path)])
    data = json.loads(result.output)
    assert data["run"] == "demo" and set(data["predictors"]) >= {"steer", "softmax_state"}
    assert (tmp_path / "report.html").exists() and (tmp_path / "validation.parquet").exists()


def test_several_runs_are_compared_without_tokens_and_in_processes(
    run: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "other", steps=9, method="steer", probed=False)
    runs = [str(run), str(tmp_path / "other")]
    command = ["analyze", *runs, "--no-tokens", "--jobs", "2", "--out", str(tmp_path / "out")]
    result = RUNNER.invoke(cli.app, [*command, "--json"])
    data = json.loads(result.output)
    assert [m["method"] for m in data["methods"]] == ["grpo", "steer"]
    text = (tmp_path / "out" / "report.html").read_text()
    assert "--no-tokens" in text.split("<footer>")[1]
    assert cli.run(["analyze", *runs, "--jobs", "0"]) == 2


def test_plot_draws_one_or_all_from_runs_and_from_table_folders(run: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(
        cli.app, ["plot", "F3", "--from", str(run), "--out", str(tmp_path / "one")]
    )
    assert result.output.split() == [
        str(tmp_path / "one" / f"quadrants.{ending}") for ending in ("pdf", "png")
    ]
    folder = str(run / "analysis")
    result = RUNNER.invoke(cli.app, ["plot", "all", "--from", folder, "--out", str(tmp_path)])
    assert result.exit_code == 0
    names = {path.stem for path in tmp_path.glob("*.pdf")}
    assert {"predicted_vs_actual", "entropy_reward", "quadrants", "regions", "drift"} <= names
    assert "methods_summary" not in names
    assert "] methods_summary: skipped, " in result.output
    assert "what the others need: " in result.output and (tmp_path / "index.md").exists()


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("predictors", ["cov", "softmax_state"]),
        ("figures", ["predicted_vs_actual", "calibration", "quadrants"]),
        ("tasks", ["arithmetic", "countdown", "data"]),
    ],
)
def test_list_names_what_it_lists_in_one_line_each(what: str, names: list[str]) -> None:
    result = RUNNER.invoke(cli.app, ["list", what])
    assert result.exit_code == 0
    words = {line.split()[0]: line for line in result.output.splitlines()}
    for name in names:
        assert len(words[name].split()) > 2  # a name and what it is


def method_blocks() -> dict[str, list[str]]:
    """The lines of `list methods` by method, each without the column of names."""
    lines = RUNNER.invoke(cli.app, ["list", "methods"]).output.splitlines()
    assert max(map(len, lines)) <= 100
    column = len(lines[0]) - len(lines[0].split(maxsplit=1)[1])
    blocks: dict[str, list[str]] = {}
    for line in lines:
        if line[:column].strip():
            blocks[line[:column].strip()] = []
        blocks[[*blocks][-1]].append(line[column:])
    return blocks


def test_list_methods_gives_each_its_source_and_its_own_defaults() -> None:
    blocks = method_blocks()
    assert set(blocks) == set(INTERVENTIONS)
    for name, lines in blocks.items():
        text = " ".join(lines)
        assert INTERVENTIONS[name].source in text and "defaults: " in text
        assert ("unconfirmed: " in text) == bool(INTERVENTIONS[name].unconfirmed)
    assert blocks["grpo"][-2:] == ["arXiv 2402.03300", "defaults: dual_clip=10.0"]
    assert blocks["clip_higher"] == [
        "GRPO with the upper clip raised to 1.28, so that unlikely tokens may grow more.",
        "arXiv 2503.14476",
        "defaults: those of grpo, clip_high=0.28",
    ]
    assert blocks["entropy_bonus"][-1] == "defaults: those of grpo, beta=(set it)"
    # A field of the base counts where its default is another.
    assert "normaliser=selected_mean mu=2.5 scope=rollout" in blocks["entropy_disc_batch"][-1]
    assert "normaliser" not in " ".join(blocks["stare"])
    steer = " ".join(blocks["steer"])
    assert steer.endswith("unconfirmed: lambda_min (the paper's v4) and the binary mapping "
                          "(third-party text)")  # fmt: skip


@pytest.mark.parametrize("command", ["train", "analyze", "eval", "plot", "doctor", "list"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = RUNNER.invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: entropy-lab {command}" in " ".join(result.output.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"entropy-lab {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["analyze", "nowhere"], 1, "error: nowhere does not exist: give the directory of a run"),
        (["analyze"], 2, "RUN_DIR"),
        (["analyse"], 2, "analyse"),
        (["analyze", "x", "--jsn"], 2, "--jsn"),
        (["plot", "pie", "--from", ".", "--out", "."], 2, "error: unknown figure 'pie'"),
        (
            ["plot", "quadrants", "--from", ".", "--out", "."],
            1,
            "error: . has no quadrants.parquet",
        ),
        (["plot", "quadrants", "--out", "."], 2, "--from"),
        (["list", "cats"], 2, "methods"),
        (["train", "missing.toml"], 2, "error: no such settings file: missing.toml"),
        (["train", "--set", "nonsense"], 2, "error: cannot read the override 'nonsense'"),
        (["train", "--resume"], 2, "error: --resume needs --out DIR"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == code
    output = capsys.readouterr()
    assert text in output.err
    assert "Traceback" not in output.err and not output.out
    if text.startswith("error:"):
        assert len(output.err.splitlines()) == 1


def test_train_passes_its_arguments_on_and_says_what_is_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = {}

    def stand_in(path, overrides, out, *, resume, dry_run):
        seen.update(path=path, overrides=overrides, out=out, resume=resume, dry_run=dry_run)
        return tmp_path / "a run"

    monkeypatch.setattr("entropy_lab.train.launch.run_training", stand_in)
    arguments = ["train", "a.toml", "--set", "run.seed=1", "--set", "train.rollouts=2"]
    assert cli.run([*arguments, "--out", str(tmp_path / "a run"), "--resume"]) == 0
    assert seen == {
        "path": Path("a.toml"), "overrides": ["run.seed=1", "train.rollouts=2"],
        "out": tmp_path / "a run", "resume": True, "dry_run": False,
    }  # fmt: skip
    output = capsys.readouterr().out
    assert (
        output == f"run: {tmp_path / 'a run'}\nnext: entropy-lab analyze '{tmp_path / 'a run'}'\n"
    )
    assert cli.run(["train", "--dry-run"]) == 0
    assert seen["dry_run"] is True and seen["path"] is None
    assert "next:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("bad x"), 2), (RunError("no y"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_codes_of_errors(
    error: BaseException,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("entropy_lab.train.launch.run_training", fail)
    assert cli.run(["train"]) == code
    assert capsys.readouterr().err == (f"error: {error}\n" if str(error) else "")


class Without:
    """An import finder that has no transformers, as where the extra is not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")


@pytest.mark.parametrize("words", [["train", "--out", "run"], ["train", "--dry-run"]])
def test_training_without_its_extra_says_what_to_install(
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [m for m in sys.modules if m.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    assert cli.run(words) == 2
    assert "pip install 'entropy-lab[train]'" in capsys.readouterr().err


def test_python_dash_m_runs_from_another_folder_without_torch(run: Path, tmp_path: Path) -> None:
    """Reading a log must not wait for torch, and a mistake leaves no traceback."""
    root = Path(cli.__file__).parents[2]
    block = tmp_path / "sitecustomize.py"
    block.write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ImportError('reading a log must not import torch')\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "entropy_lab", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    found = command("analyze", str(run), "--out", str(tmp_path / "out"))
    assert found.returncode == 0, found.stderr
    assert "softmax_state" in found.stdout
    wrong = command("analyze", "nowhere")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: nowhere") and "Traceback" not in wrong.stderr
