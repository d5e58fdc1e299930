"""entropy-lab eval: what is wrong is one line, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_files import parquet, tiny_folder, verl_rows
from entropy_lab import cli
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.record import create_run
from entropy_lab.train.eval_files import Asked, evaluate_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """once.parquet, which has five problems, and a model."""
    folder = tmp_path_factory.mktemp("files")
    tiny_folder(folder / "model", parquet(folder / "once.parquet", verl_rows(5)))
    return folder


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-k", "0"], "error: -k takes whole numbers from 1, such as -k 1,8,32, not '0'"),
        (["-k", "1,x"], "not 'x'"),
        (["-k", "8", "--samples", "4"], "eval.k = 8 is more than eval.samples = 4"),
        (["--greedy", "-k", "8"], "--greedy takes the likeliest response, of which there is one"),
        (["--temperature", "0", "-k", "2"], "eval.temperature = 0 takes the likeliest response"),
        (["--temperature", "-1"], "evaluation: temperature must be greater than or equal to 0"),
        (["--top-p", "1.5"], "evaluation: top_p must be less than or equal to 1, got 1.5"),
        (["--set", "rollout.prompts=1"], "takes task.KEY=VALUE and reward.KEY=VALUE alone"),
        (["--set", "task.prompt=q"], "unknown key task.prompt of task data; did you mean prom"),
        (["no.parquet"], "no such data file: no.parquet"),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = ["--bench", f"{files}/once.parquet"]
    assert cli.run(["eval", str(files / "model"), *bench, *words]) == 2
    error = capsys.readouterr().err
    assert text in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_evaluated_is_said(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is neither a run \(run.json\), nor a checkpoint"):
        evaluate_files(tmp_path, Asked())
    with pytest.raises(ConfigError, match="a model folder has no problems of its own: give --b"):
        evaluate_files(files / "model", Asked())
    fresh = create_run(tmp_path / "fresh", {}, seeds=0)
    with pytest.raises(RunError, match="has no complete checkpoint to evaluate"):
        evaluate_files(fresh, Asked())
    (fresh / "checkpoints" / "step-000004").mkdir(parents=True)
    with pytest.raises(RunError, match="is not a run of the bundled trainer: give a model folder"):
        evaluate_files(fresh / "checkpoints" / "step-000004", Asked())
    with pytest.raises(RunError, match="there is no checkpoint .*step-000009: see what"):
        evaluate_files(fresh / "checkpoints" / "step-000009", Asked())
