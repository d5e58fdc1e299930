"""The measuring rules and the guarantees of a run, through the real trainer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from entropy_lab import load
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.record import read_vocab
from entropy_lab.train.launch import run_training
from entropy_lab.types import HELD_OUT
from tiny import TINY, assert_same_run, cli_overrides, metrics, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run that others are compared with."""
    return run_training(None, TINY, tmp_path_factory.mktemp("runs") / "whole")


def command(out: Path, *more: str, resume: bool = False) -> list[str]:
    start = [sys.executable, "-m", "entropy_lab", "train", "--out", str(out)]
    return [*start, "--resume"] if resume else [*start, *cli_overrides(*more)]


def test_a_run_holds_what_the_contract_names(whole: Path) -> None:
    run = load(whole)
    assert run.info["status"] == "finished"
    steps, tokens, samples = run.steps(), run.tokens(), run.samples()
    assert len(steps) == len(run.metrics()) == 12 and len(samples) == 6 * 16
    assert set(steps["heldout_source"]) == {"next_minibatch", "fixed"}
    assert steps["before_is_loss_forward"].all()
    assert steps["age"].tolist() == [0, 1] * 6
    held = (tokens["flags"] & HELD_OUT) > 0
    own = tokens[~held]
    assert own.groupby("step").size().tolist() == steps["n_tokens"].tolist()
    assert set(own["uid"]) == set(samples["uid"])
    length = own.groupby("uid").size()
    by_uid = samples.set_index("uid")
    np.testing.assert_array_equal(length, by_uid.loc[length.index, "length"])
    # Rows of the first minibatch were scored by the pass that made old_logp.
    fresh = own[own["age"] == 0]
    assert (fresh["old_logp"] == fresh["logp"]).all()
    assert (own[own["age"] == 1]["old_logp"] != own[own["age"] == 1]["logp"]).any()
    assert steps["repeat_max"].dropna().eq(0.0).all()
    assert steps["gradient_audit"].dropna().max() <= 1e-4


def test_the_texts_of_a_response_s_tokens_are_the_response(whole: Path) -> None:
    texts, run = read_vocab(whole), load(whole)
    tokens = run.tokens(columns=["uid", "pos", "token_id", "flags"]).query(f"flags < {HELD_OUT}")
    spelled = tokens.sort_values("pos").groupby("uid")["token_id"].agg(
        lambda ids: "".join(str(texts[i]) for i in ids)
    )
    samples = run.samples().set_index("uid")["response"]
    assert spelled.str.removesuffix("<eos>").to_dict() == samples.loc[spelled.index].to_dict()


def test_zero_learning_rate_moves_nothing(tmp_path: Path) -> None:
    out = run_training(None, [*TINY, "optimizer.lr=0.0", "train.rollouts=2"], tmp_path / "run")
    tokens = load(out).tokens()
    assert len(tokens) > 100
    assert (tokens["dH"] == 0.0).all() and (tokens["dlogp"] == 0.0).all()


@pytest.mark.parametrize(
    "change", ["probe.enabled=false", "probe.every=3", "probe.fraction=0.5", "probe.held_out=false"]
)
def test_weights_do_not_depend_on_the_probe(whole: Path, tmp_path: Path, change: str) -> None:
    out = run_training(None, [*TINY, change], tmp_path / "run")
    left, right = weights(whole), weights(out)
    assert all(torch.equal(left[k], right[k]) for k in left)
    kept = ("reward", "entropy_token_mean", "grad_norm")
    assert [[m[k] for k in kept] for m in metrics(whole)] == [
        [m[k] for k in kept] for m in metrics(out)
    ]


def test_equal_seeds_give_equal_runs_and_others_do_not(whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # the global state must not matter
    same = run_training(None, TINY, tmp_path / "same")
    assert_same_run(whole, same)
    other = run_training(None, [*TINY, "run.seed=1"], tmp_path / "other")
    assert metrics(other) != metrics(whole)


@pytest.mark.parametrize("method", ["steer", "clip_cov", "kl_cov"])
def test_methods_act_and_say_so(tmp_path: Path, method: str) -> None:
    settings = [*TINY, f"method.name={method}", "rollout.prompts=16", "optimizer.lr=3e-3"]
    if method != "steer":
        settings.append("method.ratio=0.05")
    if method == "clip_cov":
        settings += ["method.lb=0.01", "method.ub=50.0"]
    run = load(run_training(None, settings, tmp_path / "run"))
    steps, tokens = run.steps(), run.tokens()
    # A step in which every group has equal rewards has nothing to touch.
    assert (steps["touched_share"] > 0).sum() >= 4
    own = tokens[(tokens["flags"] & HELD_OUT) == 0]
    if method == "steer":
        assert own["weight"].between(0.7 - 1e-6, 1.0).all() and own["weight"].nunique() > 10
        assert steps["method_weight_mean"].between(0.7, 1.0).all()
    else:
        assert ((own["flags"] & 8) > 0).any()
        assert steps["method_selected"].max() >= 1


def test_resume_from_a_rewound_run_equals_the_whole(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_training(None, TINY, out)
    last = sorted((out / "checkpoints").glob("step-*"))
    for path in last[1:]:
        _delete(path)
    run_training(None, [], out, resume=True)
    assert_same_run(whole, out)


def _delete(path: Path) -> None:
    for part in path.iterdir():
        part.unlink()
    path.rmdir()


def test_a_finished_run_can_be_extended(whole: Path, tmp_path: Path) -> None:
    out = run_training(None, [*TINY, "train.rollouts=2"], tmp_path / "run")
    with pytest.raises(RunError, match="has finished its 2 rollouts: raise them with"):
        run_training(None, [], out, resume=True)
    run_training(None, ["train.rollouts=6"], out, resume=True)
    assert_same_run(whole, out)


@pytest.mark.parametrize("lines", [0, 3, 7, 11])
def test_sigkill_leaves_a_readable_run_that_resumes_exactly(
    whole: Path, tmp_path: Path, lines: int
) -> None:
    out = tmp_path / "run"
    child = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for_lines(out / "metrics.jsonl", lines, child)
    child.kill()
    child.wait()
    if (out / "run.json").exists() and lines:
        run = load(out)
        through = [m["tokens_through"] for m in metrics(out)][-1]
        if through is not None:
            tokens, full = run.tokens(), load(whole).tokens()
            sure = tokens[tokens["step"] <= through].reset_index(drop=True)
            expected = full[full["step"] <= through].reset_index(drop=True)
            assert sure.equals(expected)
    done = subprocess.run(command(out, resume=True), capture_output=True, text=True)
    finished = "has finished its 6 rollouts" in done.stderr
    assert done.returncode == 0 or finished, done.stderr
    assert_same_run(whole, out)


def _wait_for_lines(path: Path, lines: int, child: subprocess.Popen) -> None:
    start = time.monotonic()
    while child.poll() is None and time.monotonic() - start < 120:
        try:
            if path.read_bytes().count(b"\n") >= lines and (path.parent / "run.json").exists():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.01)


def test_ctrl_c_saves_says_so_and_exits_130(tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = subprocess.Popen(
        command(out, "train.rollouts=400", "train.checkpoint_every=0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_lines(out / "metrics.jsonl", 3, child)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in stderr
    assert f"continue with: entropy-lab train --resume --out {out}" in stdout + stderr
    run = load(out)
    assert run.info["status"] == "interrupted"
    saved = sorted((out / "checkpoints").glob("step-*"))
    assert len(saved) == 1 and int(saved[0].name[5:]) == run.last_step + 1
    assert set(run.tokens()["step"]) == set(range(run.last_step + 1))


def test_a_full_disk_is_one_line_and_earlier_files_stay(whole: Path, tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the same write fails, with EFBIG."""
    out = tmp_path / "run"
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "from entropy_lab.cli import main\n"
        "sys.argv = ['entropy-lab'] + sys.argv[1:]\n"
        "main()\n"
    )
    start = [sys.executable, "-c", code, *command(out, "train.checkpoint_every=0")[3:]]
    done = subprocess.run(start, capture_output=True, text=True)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert "Traceback" not in done.stderr and sum("error:" in line for line in errors) == 1
    assert str(out) in done.stderr.replace("\n", "")
    run = load(out)
    assert run.info["status"] == "failed" and not run.damaged


def test_resume_mistakes_are_named(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--resume needs --out DIR"):
        run_training(None, [], None, resume=True)
    with pytest.raises(ConfigError, match="takes its settings from .*run.json: leave a.toml out"):
        run_training(Path("a.toml"), [], whole, resume=True)
    with pytest.raises(ConfigError, match="optimizer.lr cannot change when a run is continued"):
        run_training(None, ["optimizer.lr=1.0"], whole, resume=True)
    with pytest.raises(RunError, match="is not a run"):
        run_training(None, [], tmp_path, resume=True)
    with pytest.raises(RunError, match="already holds a run: continue it with --resume"):
        run_training(None, TINY, whole)
    with pytest.raises(RunError, match="cannot write"):
        (tmp_path / "file").write_text("")
        run_training(None, TINY, tmp_path / "file" / "run")


def test_settings_that_fail_late_leave_the_directory_free(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="holds no model"):
        run_training(None, [*TINY, f"model.path={tmp_path / 'none'}"], out)
    run_training(None, [*TINY, "train.rollouts=1"], out)
    assert load(out).info["status"] == "finished"


def test_dry_run_prints_settings_and_size_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(None, TINY, tmp_path / "run", dry_run=True)
    text = capsys.readouterr().out
    assert "6 rollouts of 16 responses, 2 optimizer steps each: 12 steps" in text
    assert "[optimizer]" in text and "lr = 0.001" in text
    assert not (tmp_path / "run").exists()
