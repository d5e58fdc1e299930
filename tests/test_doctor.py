"""`doctor`: a healthy run raises nothing, and every planted defect is called by its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import planted
import planted_scores
import toy
from entropy_lab import cli, token_stats, types
from entropy_lab.analysis import doctor as package
from entropy_lab.analysis.doctor import CHECKS, Checkpoint, Diagnosis, block, doctor
from entropy_lab.probe.step import StepMeasurement
from entropy_lab.record import RunWriter, create_run
from entropy_lab.record.parts import write_table
from entropy_lab.train import parts
from entropy_lab.train.launch import run_training
from entropy_lab.train.policy import make_score
from entropy_lab.train.rescore import open_rescorer
from synthetic import write_run
from tiny import TINY

RUNNER = CliRunner()
SETTINGS = [*TINY, "rollout.prompts=8", "optimizer.lr=6e-3", "probe.deep_every=3"]


def examine(run: Path) -> Diagnosis:
    return doctor(run, Checkpoint(**open_rescorer(run)._asdict()))


def errors(found: Diagnosis) -> set[str]:
    return {f.check for f in found.of_level("error")}


def level(found: Diagnosis, check: str) -> str:
    return {f.check: f.level for f in found.findings}[check]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("doctor") / "healthy"
    with planted.unmerged():
        return run_training(None, SETTINGS, out)


@pytest.fixture
def run(healthy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(healthy, tmp_path / "run")


@pytest.fixture
def own_uids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "batches", planted_scores.batches)


def toy_run(path: Path, dropout: float = 0.0, **options) -> Path:
    model = toy.Toy(dropout=dropout).eval()
    toy.run_loop(model, toy.adamw(model), path, held_out=True, **options)
    return path


def test_a_healthy_training_run_raises_nothing(healthy: Path):
    found = examine(healthy)
    assert [f for f in found.findings if f.level in ("warning", "error")] == []
    passed = {f.check for f in found.of_level("ok")}
    # Everything but the checks of what this run does not have was really done.
    assert set(CHECKS) - passed == {"lr_zero", "sampler"}
    assert found.healthy


def test_a_healthy_loop_of_ones_own_raises_nothing(tmp_path: Path, own_uids: None):
    found = doctor(toy_run(tmp_path / "toy", deep_every=1, floor_every=1))
    assert [f for f in found.findings if f.level in ("warning", "error")] == []
    passed = {f.check for f in found.of_level("ok")}
    assert passed >= {"same_state", "same_state_change", "moments", "floor", "identity", "held_out"}


def test_a_step_of_lr_zero_is_healthy_and_checked(tmp_path: Path, own_uids: None):
    model = toy.Toy()
    toy.run_loop(model, toy.adamw(model, lr=0.0), tmp_path / "still")
    found = doctor(tmp_path / "still")
    assert level(found, "lr_zero") == "ok" and found.healthy


@pytest.mark.parametrize("defect", planted.LOGS)
def test_a_broken_log_is_caught(defect: str, run: Path):
    plant, checks = planted.LOGS[defect]
    plant(run)
    found = examine(run)
    assert errors(found) >= set(checks), found.lines()
    assert not found.healthy
    for finding in found.of_level("error"):
        assert finding.seen and finding.means and finding.do


@pytest.mark.parametrize("defect", planted.DOUBTS)
def test_a_doubtful_log_gets_a_warning(defect: str, run: Path):
    plant, checks = planted.DOUBTS[defect]
    plant(run)
    found = examine(run)
    assert {f.check for f in found.of_level("warning")} >= set(checks) and found.healthy


def test_every_check_that_can_fail_has_a_defect():
    caught = {
        check
        for cases in (planted.LOGS, planted.DOUBTS, planted_scores.SCORES)
        for _, checks in cases.values()
        for check in checks
    }
    # Their own tests: dropped windows, temperature, calibration in a broken trainer.
    elsewhere = {"dropped_windows", "events", "temperature", "calibration", "columns"}
    assert set(CHECKS) - caught - elsewhere == {"loss_forward"}


@pytest.mark.parametrize("defect", planted_scores.SCORES)
def test_a_broken_probe_is_caught(
    defect: str, tmp_path: Path, own_uids: None, monkeypatch: pytest.MonkeyPatch
):
    broken, checks = planted_scores.SCORES[defect]
    model = toy.Toy(dropout=0.3).eval()
    optimizer = toy.adamw(model)
    after = planted_scores.After(optimizer)
    monkeypatch.setattr(toy, "score_of", lambda model: broken(model, after))
    toy.run_loop(model, optimizer, tmp_path / "broken", floor_every=1)
    assert errors(doctor(tmp_path / "broken")) >= set(checks)


def test_a_gradient_of_an_auxiliary_loss_is_caught(tmp_path: Path, own_uids: None):
    path = toy_run(tmp_path / "aux", extra_loss=lambda m: 0.05 * m.head.weight.square().sum())
    found = doctor(path)
    assert errors(found) == {"gradient_audit"}


@pytest.mark.parametrize(
    ("defect", "checks"),
    [
        ("temperature not applied", {"rescored", "calibration"}),
        ("mask shifted by one", {"rescored", "calibration", "same_state"}),
        ("other temperature after the step", {"rescored", "chain", "repeat"}),
    ],
)
def test_a_broken_trainer_is_caught(
    defect: str, checks: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = {
        "temperature not applied": lambda _: lambda model, **_: make_score(model, 1.0),
        "mask shifted by one": lambda _: shifted_score,
        "other temperature after the step": warmer_after,
    }
    monkeypatch.setattr(parts, "make_score", broken[defect](monkeypatch))
    changes = ["rollout.prompts=48", "rollout.temperature=1.5", "optimizer.lr=1e-3"]
    settings = [*SETTINGS, *changes, "probe.deep_every=0", "train.micro_batch=32"]
    found = examine(run_training(None, settings, tmp_path / "broken"))
    assert errors(found) >= checks


def shifted_score(model, temperature, **_):
    """Position t scored by the logits that have already seen token t."""

    def score(inputs):
        logits = model(
            input_ids=inputs.input_id, attention_mask=inputs.seen, position_ids=inputs.position
        ).logits[:, -inputs.token_id.shape[1] :]
        return token_stats(logits, inputs.token_id, temperature)

    return score


def warmer_after(monkeypatch: pytest.MonkeyPatch):
    """A probe whose pass after the step is at a slightly other temperature."""
    measure, factor = StepMeasurement.measure_after, [1.0]

    def measure_after(self, scorer):
        factor[0] = 1.02
        measure(self, scorer)
        factor[0] = 1.0

    monkeypatch.setattr(StepMeasurement, "measure_after", measure_after)
    return lambda model, temperature, **_: (
        lambda inputs: make_score(model, factor[0] * temperature)(inputs)
    )


def test_a_killed_run_is_not_blamed_for_its_end(run: Path):
    """The last part was never written, and run.json still says running."""
    planted.set_info(run, status="running")
    for kind in ("tokens", "steps"):
        planted.parts(run, kind)[-1].unlink()
    found = doctor(run)
    assert found.healthy and level(found, "status") == "note"


def test_dropped_windows_are_a_warning_not_an_error(run: Path):
    planted.set_info(run, dropped_windows=1)
    planted.parts(run, "tokens")[1].unlink()
    found = doctor(run)
    assert level(found, "dropped_windows") == level(found, "token_steps") == "warning"
    assert found.healthy


def test_a_log_of_the_core_profile_and_without_samples(tmp_path: Path):
    """Importers have fewer columns; what cannot be checked is listed, nothing stumbles."""
    write_run(tmp_path / "core", steps=3)
    shutil.rmtree(tmp_path / "core" / "samples")
    (note,) = [f for f in doctor(tmp_path / "core").findings if f.check == "coverage"]
    assert {"moments", "samples", "lengths", "sampler"} <= set(note.seen.split(": ")[1].split(", "))


def test_a_missing_column_is_named(run: Path):
    for path in planted.parts(run, "tokens"):
        table = pq.read_table(path, partitioning=None)
        write_table(table.drop_columns(["old_logp"]), path)
    found = doctor(run)
    (finding,) = [f for f in found.findings if f.check == "columns"]
    assert finding.level == "warning" and "old_logp" in finding.seen
    assert found.healthy


def test_a_run_without_token_rows(tmp_path: Path):
    write_run(tmp_path / "bare", steps=3, probed=False)
    found = doctor(tmp_path / "bare")
    assert found.healthy and level(found, "token_steps") == "note"


def test_stated_settings_are_compared(tmp_path: Path):
    for name, sampling, expected in [
        ("other", {"temperature": 0.7}, "error"),
        ("cut", {"temperature": 1.0, "top_p": 0.9}, "warning"),
        ("same", {"temperature": 1.0, "top_p": 1.0}, "ok"),
    ]:
        path = tmp_path / name
        create_run(path, {"rollout": sampling}, seeds={"seed": 0})
        with RunWriter(path, meta={"temperature": "1.0"}) as writer:
            writer.step({"step": 0, "probed": False})
            writer.commit({"step": 0})
        assert level(doctor(path), "temperature") == expected


def test_flag_bits_are_those_of_types():
    names = ("CLIPPED_HIGH", "CLIPPED_LOW", "DUAL_CLIPPED", "SELECTED", "TRUNCATED")
    assert [getattr(block, n) for n in names] == [getattr(types, n) for n in names]


def test_every_check_has_a_name_of_its_own():
    assert len(set(CHECKS)) == len(CHECKS) == len(package.RUN_CHECKS) + len(package.ROW_CHECKS) + 1


def test_command_on_a_healthy_and_on_a_broken_run(healthy: Path, run: Path):
    good = RUNNER.invoke(cli.app, ["doctor", str(healthy)])
    assert good.exit_code == 0
    assert good.output.startswith("healthy: nothing speaks against this log: 1 note, ")
    assert "rescored" in good.output.split("ok  ")[-1]
    planted.edit(run, planted.one_nan)
    bad = RUNNER.invoke(cli.app, ["doctor", str(run), "--no-model"])
    assert bad.exit_code == 1
    assert "error   finite: " in bad.output and "\n        -> find the pass" in bad.output
    assert "not re-scored: --no-model" in bad.output
    as_json = RUNNER.invoke(cli.app, ["doctor", str(run), "--json"])
    assert as_json.exit_code == 1
    data = json.loads(as_json.output)
    assert data["run"] == "run" and data["healthy"] is False and data["counts"]["error"] >= 1
    assert data["findings"][0]["level"] == "error"
    assert list(data["findings"][0]) == ["check", "level", "seen", "means", "do"]


def test_command_says_why_it_could_not_score_again(run: Path, tmp_path: Path):
    toy_run(tmp_path / "toy", steps=1)
    result = RUNNER.invoke(cli.app, ["doctor", str(tmp_path / "toy")])
    assert "not re-scored: the run has no checkpoint" in result.output
    for path in (run / "checkpoints").rglob("model.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    result = RUNNER.invoke(cli.app, ["doctor", str(run)])
    assert result.exit_code == 0 and "not re-scored: the checkpoint" in result.output


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "does not exist: give the directory of a run"),
        (lambda path: path.mkdir(), "is not a run: it has no run.json"),
        (lambda path: path.write_text("x"), "is a file: give the directory of a run"),
        (lambda path: create_run(path, {}, seeds=0), "holds no finished step"),
    ],
)
def test_a_wrong_directory_is_one_line(make, text: str, tmp_path: Path, capsys):
    make(tmp_path / "x")
    assert cli.run(["doctor", str(tmp_path / "x")]) == 1
    output = capsys.readouterr()
    assert text in output.err and len(output.err.splitlines()) == 1 and not output.out
