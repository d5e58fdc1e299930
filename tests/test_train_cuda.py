"""The bundled trainer on a CUDA device: load, sample, score, measure, save, resume, replay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from entropy_lab import load
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.model import load_model
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.replay import replay
from entropy_lab.train.rescore import open_rescorer
from entropy_lab.train.rollout import HFEngine
from tiny_models import SHORT, any_reward, save_model

CUDA = [
    *(text for text in SHORT if text != "model.device=cpu"), "model.device=cuda",
    "train.rollouts=2", "train.checkpoint_every=1", "train.keep_checkpoints=0",
    "train.replay_every=1", "eval.every=1", "eval.problems=2", "eval.samples=2",
    "task.held_out_share=0.1", "method.name=steer",
]  # fmt: skip
pytestmark = pytest.mark.gpu


def test_a_whole_run_and_all_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    any_reward(monkeypatch)
    given = [*CUDA, f"model.path={save_model('qwen3', tmp_path / 'model')}"]
    out = run_training(None, [*given, "train.rollouts=1"], tmp_path / "run")
    run_training(None, ["train.rollouts=2"], out, resume=True)
    run = load(out)
    steps = run.steps()
    assert run.info["device"] == "cuda" and len(steps) == 4
    assert steps["gradient_audit"].max() < 1e-5 and steps["identity_error"].max() < 1e-3
    assert (steps["dH_train"] != 0).all()
    assert len(replay(out, {}).rows) == 2
    logp, entropy = open_rescorer(out).score(["1+2="], [steps["step"].to_numpy()[:3] + 5])
    assert len(logp[0]) == len(entropy[0]) == 3


@pytest.mark.parametrize("more", [[], ["model.dtype=bfloat16"], ["model.autocast=bfloat16"]])
def test_no_learning_rate_no_change(tmp_path: Path, more: list[str]) -> None:
    folder = save_model("llama", tmp_path / "model")
    still = ["optimizer.lr=0.0", "probe.deep_every=0", f"model.path={folder}", *more]
    tokens = load(run_training(None, [*CUDA, *still], tmp_path / "run")).tokens()
    assert (tokens["dH"] == 0.0).all() and (tokens["dlogp"] == 0.0).all()


def test_scores_are_those_of_the_cpu(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path)
    there, here = (
        load_model(load_config(None, [f"model.path={folder}", f"model.device={d}"]))[0]
        for d in ("cuda", "cpu")
    )
    out = HFEngine().generate(there, [[3, 4, 5], [6]], 4, 8, 1.0, 0)
    inputs = model_inputs(out, slice(None))
    moved = type(inputs)(*(getattr(inputs, f).cpu() for f in inputs.__dataclass_fields__))
    with torch.no_grad():
        left, right = make_score(there, 1.0)(inputs), make_score(here, 1.0)(moved)
    mask = out.mask.cpu()
    assert (left.logp.cpu() - right.logp)[mask].abs().max() < 1e-4
