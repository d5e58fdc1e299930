"""Methods with a memory through the real trainer: their hooks, their log, and resuming."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from entropy_lab import load
from entropy_lab.interventions import INTERVENTIONS, Method
from entropy_lab.train.launch import run_training
from tiny import TINY, assert_same_run, metrics

CALLS: list[tuple[str, Any, Any, dict[str, float]]] = []


@dataclass(frozen=True, kw_only=True)
class Spy(Method):
    """A plain loss that writes down how it is called, and counts in its memory."""

    name: ClassVar[str] = "spy"
    source: ClassVar[str] = "these tests"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp", "m2"})

    def initial_state(self) -> dict[str, float]:
        return {"rollouts": 0.0, "steps": 0.0}

    def begin_rollout(self, batch, stats, state):
        CALLS.append(("begin_rollout", batch, stats, state))
        return {**state, "rollouts": state["rollouts"] + 1}

    def plan(self, batch, stats, state=None):
        assert state is not None
        CALLS.append(("plan", batch, stats, state))
        return self._plan(scalars={"half_steps": state["steps"] / 2})

    def end_step(self, batch, stats, state):
        CALLS.append(("end_step", batch, stats, state))
        return {**state, "steps": state["steps"] + 1}


def test_the_hooks_see_the_rollout_the_step_and_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INTERVENTIONS, "spy", Spy)
    CALLS.clear()
    out = run_training(None, [*TINY, "train.rollouts=3", "method.name=spy"], tmp_path / "run")
    rollout = ["begin_rollout", "plan", "end_step", "plan", "end_step"]
    assert [call[0] for call in CALLS] == 3 * rollout
    for number in range(3):
        (_, whole, at_first, _), *steps = CALLS[5 * number : 5 * number + 5]
        assert whole.uid.tolist() == [(number << 32) + i for i in range(16)]
        # The policy that generated: the pass that made old_logp, to the last bit.
        assert torch.equal(at_first.logp[whole.mask], whole.old_logp[whole.mask])
        assert torch.equal(at_first.entropy[whole.mask], whole.old_entropy[whole.mask])
        assert (whole.advantage != 0).any() or whole.reward.unique().numel() < 3
        for age in (0, 1):
            (_, batch, before, _), (_, after_batch, after, _) = steps[2 * age : 2 * age + 2]
            assert batch.uid.equal(whole.uid[8 * age : 8 * age + 8])
            assert batch.step == 2 * number + age
            # end_step sees the statistics from before the step, those that the plan saw.
            assert torch.equal(after.logp, before.logp) and torch.equal(after.m2, before.m2)
            assert after_batch.uid.equal(batch.uid)
            assert torch.equal(before.logp[batch.mask], batch.old_logp[batch.mask]) == (age == 0)
    steps_table = load(out).steps()
    assert steps_table["method_rollouts"].tolist() == [1, 1, 2, 2, 3, 3]
    assert steps_table["method_steps"].tolist() == [0, 1, 2, 3, 4, 5]
    assert [m["method_half_steps"] for m in metrics(out)] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [m["method_steps"] for m in metrics(out)] == [0, 1, 2, 3, 4, 5]


def test_the_logged_controller_follows_from_the_logged_entropy(tmp_path: Path) -> None:
    plain = load(run_training(None, TINY, tmp_path / "plain")).steps()
    threshold = float(plain["entropy_token_mean"].median())
    settings = [*TINY, "method.name=pos_adv_reweight", "method.start=0.5", "method.delta=0.2"]
    out = run_training(None, [*settings, f"method.threshold={threshold}"], tmp_path / "run")
    steps, tokens = load(out).steps(), load(out).tokens()
    expected, factor = [], 0.5
    for entropy in steps["entropy_token_mean"]:
        expected.append(factor)
        factor = min(max(factor + (-0.2 if entropy < threshold else 0.2), 0.0), 1.0)
    assert steps["method_lambda"].tolist() == pytest.approx(expected, abs=1e-12)
    assert 3 <= len(set(np.round(expected, 6)))  # it went both ways
    weight = tokens["step"].map(dict(zip(steps["step"], expected, strict=True)))
    own = (tokens["flags"] & 32) == 0
    wanted = np.where(tokens["advantage"] > 0, weight, 1.0)
    np.testing.assert_allclose(tokens["weight"][own], wanted[own], rtol=1e-6)


CONTROLLED = {
    # A larger beta at each step; repo_r's target is the entropy of the first rollout.
    "adaptive_entropy": ["method.variant=trl", "method.target=9.0", "method.delta=0.01"],
    "repo_r": ["method.zeta=0.01"],
}


@pytest.mark.parametrize("name", CONTROLLED)
def test_a_resumed_run_goes_on_with_the_methods_memory(name: str, tmp_path: Path) -> None:
    settings = [*TINY, f"method.name={name}", *CONTROLLED[name]]
    whole = run_training(None, settings, tmp_path / "whole")
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for late in sorted((out / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(late)
    run_training(None, [], out, resume=True)
    assert_same_run(whole, out)
    column = {"adaptive_entropy": "method_beta", "repo_r": "method_zeta"}[name]
    assert load(out).steps()[column].nunique() > 2


SETTINGS = {
    "entropy_disc_batch": ["method.mu=0.5"],
    "entropy_disc_vocab": ["method.mu=0.5", "method.max_share=0.1"],
    "stare": ["method.gate=9.0", "method.weight_up=1.5"],
    "entropy_pi": ["method.probability=0.5"],
    "entrocraft": ["method.total_steps=12", "method.high_start=0.7"],
    "bapo": [],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_of_each_method_acts_and_doctor_believes_it(name: str, tmp_path: Path) -> None:
    from entropy_lab.analysis.doctor import doctor

    settings = [*TINY, "optimizer.lr=3e-3", "rollout.prompts=8", f"method.name={name}"]
    out = run_training(None, [*settings, *SETTINGS[name]], tmp_path / "run")
    steps = load(out).steps()
    scalar = {"entropy_pi": "alpha", "entrocraft": "rejected", "bapo": "high"}.get(name, "selected")
    assert steps[f"method_{scalar}"].abs().max() > 0
    assert steps["gradient_audit"].dropna().max() <= 1e-4
    found = doctor(out, None, "none")
    assert found.healthy, "\n".join(found.lines())
