"""The wheel, away from the repository: it holds what it should and trains, analyzes and plots."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tiny import cli_overrides

ROOT = Path(__file__).parents[1]
# `python -m entropy_lab` as a user types it, but with the editable install of this repository
# taken off the path: what the wheel lacks cannot be found here.
AWAY = """
import runpy, sys
repository, target = sys.argv[1:3]
sys.path[:] = [target, *(p for p in sys.path if p not in ("", repository))]
sys.argv[:] = ["entropy_lab", *sys.argv[3:]]
runpy.run_module("entropy_lab", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(out), str(ROOT))
    (built,) = out.glob("entropy_lab-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-index", "--target", str(target), str(wheel))
    return target


def pip(command: str, *args: str) -> None:
    line = [sys.executable, "-m", "pip", "--disable-pip-version-check", command, "--no-deps"]
    result = subprocess.run([*line, *args], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def entropy_lab(installed: Path, folder: Path, *args: str) -> str:
    line = [sys.executable, "-c", AWAY, str(ROOT), str(installed), *args]
    result = subprocess.run(line, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, f"{args}: {result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    source = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "entropy_lab").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {n for n in names if ".dist-info/" not in n} == source
    assert {"entropy_lab/py.typed", "entropy_lab/train/demo.toml"} <= source


def test_the_wheel_trains_analyzes_and_plots_from_another_folder(installed: Path, tmp_path: Path):
    assert "analyze" in entropy_lab(installed, tmp_path, "--help")
    entropy_lab(installed, tmp_path, "train", "--out", "run", *cli_overrides())
    summary = json.loads(entropy_lab(installed, tmp_path, "analyze", "run", "--json"))
    entropy_lab(installed, tmp_path, "plot", "all", "--from", "run", "--out", "drawn")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 12 and json.loads(lines[-1])["tokens_through"] is not None
    assert "softmax_state" in summary["predictors"]
    assert "</html>" in (tmp_path / "run" / "analysis" / "report.html").read_text()
    assert len(list((tmp_path / "drawn").rglob("*.pdf"))) >= 3


def test_nothing_of_the_repository_is_found(installed: Path, tmp_path: Path):
    """The test above would prove nothing if the editable install answered instead."""
    probe = AWAY.replace(
        'runpy.run_module("entropy_lab", run_name="__main__", alter_sys=True)',
        "import entropy_lab; print(entropy_lab.__file__); import benchmarks",
    )
    line = [sys.executable, "-c", probe, str(ROOT), str(installed)]
    result = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert Path(result.stdout.strip()).parent == installed / "entropy_lab"
    assert "No module named 'benchmarks'" in result.stderr
