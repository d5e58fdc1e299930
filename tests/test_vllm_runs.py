"""Whole runs with a real vLLM engine: equal, continued, stopped, and as good as with hf.

The engine's Python is $VLLM_PYTHON, or this one where it has vllm (`make test-vllm`).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from entropy_lab.errors import RunError
from entropy_lab.train.launch import run_training
from entropy_lab.train.rollout import VLLMEngine
from tiny import TINY, assert_same_run, metrics

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (PYTHON or importlib.util.find_spec("vllm")), reason="no Python with vllm: make vllm"
    ),
]


WIDER = [*TINY, "model.heads=1"]  # vLLM's attention on a CPU wants heads of width 32 or more
VLLM = ["rollout.engine=vllm", f"vllm.python={PYTHON}"]


def test_equal_runs_are_equal_also_continued(tmp_path: Path) -> None:
    settings = [*WIDER, *VLLM, "train.rollouts=4", "eval.every=2", "eval.problems=4",
                "eval.samples=4", "task.held_out_share=0.2"]  # fmt: skip
    run_training(None, settings, tmp_path / "a")
    run_training(None, [*settings, "train.rollouts=2"], tmp_path / "b")
    run_training(None, ["train.rollouts=4"], tmp_path / "b", resume=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_stops_where_the_engine_keeps_old_weights(tmp_path: Path, monkeypatch) -> None:
    made, update = [], VLLMEngine.update

    def forgetful(self: VLLMEngine, model):
        made.append(self)
        return update(self, model) if len(made) < 3 else self._process

    monkeypatch.setattr(VLLMEngine, "update", forgetful)
    with pytest.raises(RunError, match=r"\(tolerance 0\.001\).* Nothing was trained on it"):
        run_training(None, [*WIDER, *VLLM], tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 2  # the fixed set and one rollout had its weights
    assert made[0]._process is None


def test_both_engines_reach_the_same_reward(tmp_path: Path) -> None:
    """Mean reward of the last 8 of 60 rollouts, over two seeds each.

    The seeds of one engine spread by 0.03, so a difference of two means does by 0.03.
    """
    common = [*WIDER, "probe.enabled=false", "model.hidden=64", "model.intermediate=128",
              "model.warmup_iterations=600", "rollout.prompts=32", "rollout.group_size=8",
              "train.rollouts=60", "train.micro_batch=128", "train.checkpoint_every=0",
              "optimizer.lr=1.5e-3"]  # fmt: skip
    first, last = {}, {}
    for engine, chosen in (("hf", []), ("vllm", VLLM)):
        rewards = []
        for seed in (0, 1):
            out = tmp_path / f"{engine}-{seed}"
            run_training(None, [*common, *chosen, f"run.seed={seed}"], out)
            rewards.append([m["reward"] for m in metrics(out)])
        first[engine] = np.mean([r[:4] for r in rewards], axis=1)
        last[engine] = np.mean([r[-16:] for r in rewards], axis=1)
        print(f"{engine}: mean reward {first[engine]} at first, {last[engine]} in the end")
        assert (last[engine] > first[engine] + 0.1).all()  # it learns
    assert abs(last["hf"].mean() - last["vllm"].mean()) < 0.1
