"""A TRL run from beginning to end: evaluation, checkpoints, failures, ranks, the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("trl", reason="pip install 'entropy-lab[trl]'")

from entropy_lab import load
from entropy_lab.adapters.trl import attach
from entropy_lab.cli import app
from trl_runs import make_trainer, share_of_a


def command(*words: str) -> str:
    """What `entropy-lab` prints, where it ends well."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_foreign_run_from_trainer_to_report(tmp_path: Path) -> None:
    """TRL's directory is one that doctor believes, three methods are audited on, and a report is
    drawn from; the audit rebuilds the gradient of TRL's own loss from the rows."""
    settings = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
    trainer = make_trainer(
        tmp_path / "out", max_steps=12, loss_type="bnpo", **settings
    )
    attach(trainer, tmp_path / "run", deep_every=6)
    trainer.train()
    run = str(tmp_path / "run")
    said = command("doctor", run)
    assert "nothing speaks against this log" in said
    # AdamW's first step divides gradients that are mere rounding by themselves: 1e-3 of influence.
    warned = [line for line in said.splitlines() if line.startswith("warning")]
    assert all("identity" in line and "in step 0" in line for line in warned), said
    methods = [w for name in ("steer", "kl_cov", "clip_cov") for w in ("--method", name)]
    said = command("audit", run, *methods)
    assert all(f"\n{name}\n" in said for name in ("steer", "kl_cov", "clip_cov"))
    # bnpo averages over the tokens of a micro-batch where ours takes the step's: a few percent.
    audit = pd.read_parquet(tmp_path / "run" / "analysis" / "audit.parquet")
    own = audit[audit["method"] == "run"].iloc[0]
    assert own["cosine"] > 0.99
    assert "jvp" in command("analyze", run)
    report = (tmp_path / "run" / "analysis" / "report.html").read_text()
    assert "share_of_a" not in report and "grpo" in report
    assert load(run).samples()["response"].str.len().max() > 0


def test_evaluations_in_between_are_no_training(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path / "out", eval_strategy="steps", eval_steps=1, max_steps=2, eval_data=True,
        num_generations_eval=2, per_device_eval_batch_size=4,
    )  # fmt: skip
    attach(trainer, tmp_path / "run", strict=True)
    trainer.train()
    assert any("eval_reward" in line for line in trainer.state.log_history)
    run = load(tmp_path / "run")
    assert len(run.steps()) == 2 and len(run.samples()) == 16
    assert run.samples()["rollout"].nunique() == 2
    assert not any("Probe" in type(c).__name__ for c in trainer.callback_handler.callbacks)


def test_a_resumed_run_goes_on_in_the_same_directory(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path / "out", max_steps=3, **settings)
    attach(trainer, tmp_path / "run")
    trainer.train()
    again = make_trainer(tmp_path / "out", max_steps=4, **settings)
    attach(again, tmp_path / "run", strict=True)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    run = load(tmp_path / "run")
    assert list(run.steps()["step"]) == [0, 1, 2, 3] and run.info["status"] == "finished"
    assert run.samples()["uid"].is_unique and run.samples()["rollout"].max() == 3
    assert set(run.tokens()["uid"]) == set(run.samples()["uid"])


def test_a_failing_probe_does_not_stop_or_change_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for watched in (False, True):
        trainer = make_trainer(tmp_path / f"{watched}", max_steps=4)
        if watched:
            attachment = attach(trainer, tmp_path / "run")
            own, calls = attachment.watch._record, []

            def sometimes(*seen: Any, own: Any = own, calls: list[int] = calls) -> Any:
                calls.append(1)
                if len(calls) == 2:
                    raise ValueError("the second micro-batch cannot be read")
                return own(*seen)

            monkeypatch.setattr(attachment.watch, "_record", sometimes)
        trainer.train()
        ends.append(list(trainer.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    run = load(tmp_path / "run")
    assert run.info["status"] == "finished" and set(run.tokens()["step"]) == {0, 1, 2}
    events = (tmp_path / "run" / "events" / "rank=0000.jsonl").read_text()
    assert "the second micro-batch cannot be read" in events


def test_an_error_of_the_users_is_the_users(tmp_path: Path) -> None:
    from trl import GRPOTrainer

    class Broken(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, model, input_ids, *args, **kwargs):
            if torch.is_grad_enabled():
                raise ZeroDivisionError("mine")
            return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)

    trainer = make_trainer(tmp_path / "out", cls=Broken, max_steps=2)
    attach(trainer, tmp_path / "run")
    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer.train()
    assert "_prepare_inputs" not in vars(trainer)


def test_another_samplers_logp_may_have_holes(tmp_path: Path) -> None:
    """What vLLM could not score is NaN in TRL, and no number in the log."""
    from trl import GRPOTrainer

    class Sampled(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            told = output["old_per_token_logps"] + 0.25
            told[:, 1] = float("nan")
            return {**output, "sampling_per_token_logps": told}

    trainer = make_trainer(tmp_path / "out", cls=Sampled, max_steps=2, num_iterations=2)
    attach(trainer, tmp_path / "run", strict=True)
    trainer.train()
    rows = load(tmp_path / "run").tokens()
    holes = rows["pos"] == 1
    assert rows["rollout_logp"].isna().equals(holes) and holes.any()
    assert np.allclose((rows["rollout_logp"] - rows["old_logp"])[~holes], 0.25, atol=1e-5)


def test_two_ranks(tmp_path: Path) -> None:
    """gloo on a CPU: weights as without the probe, and each rank's rows once."""
    script = Path(__file__).parent / "trl_ranks.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    plain, watched = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("a", "b"))
    assert all(torch.equal(plain[k], watched[k]) for k in plain)
    run = load(tmp_path / "run")
    rows, samples, steps = run.tokens(), run.samples(), run.steps()
    assert run.info["world_size"] == 2 and len(steps) == 10
    assert not rows.duplicated(["step", "uid", "pos"]).any()
    assert samples["uid"].is_unique and set(rows["uid"]) == set(samples["uid"])
    text = samples.set_index("uid")["response"].map(lambda t: share_of_a([t])[0])
    assert np.allclose(text, samples.set_index("uid")["reward"])
    # The steps table is of all ranks' tokens.
    assert np.allclose(rows.groupby("step")["entropy"].mean(), steps["entropy_token_mean"])
    assert np.allclose(rows.groupby("step")["dH"].mean(), steps["dH_train"], atol=1e-8)
    assert np.allclose(rows.groupby("step").size(), steps["n_tokens"])
    # The loss of the step is the mean of the ranks': with bnpo c = A / N_micro / ranks.
    first = rows[rows["step"] == 0]
    size = first.groupby("micro")["pos"].transform("size")
    assert np.allclose(first["grad_logp"], first["advantage"] / size / 2, rtol=1e-3, atol=1e-7)
    command("doctor", str(tmp_path / "run"))
