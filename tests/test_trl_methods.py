"""Methods that TRL's own loss carries out, those that it cannot, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="pip install 'entropy-lab[trl]'")

from entropy_lab import load
from entropy_lab.adapters.trl import attach
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import make_method
from entropy_lab.types import TokenBatch, TokenStats
from trl_runs import make_trainer

TWO_STEPS = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 2}


def first_step(path: Path) -> Any:
    rows = load(path).tokens()
    rows = rows[(rows["step"] == 0) & (rows["flags"] & 32 == 0)]
    return rows.set_index(["uid", "pos"]).sort_index()


def as_batch(rows: Any) -> tuple[TokenBatch, TokenStats]:
    """Rows of one step, a response each: what a method reads, (N, 1)."""
    column = {k: torch.tensor(rows[k].to_numpy())[:, None] for k in rows.columns if k != "x"}
    stats = TokenStats(*(column[k] for k in ("logp", "entropy", "m0", "m1", "m2")))
    batch = TokenBatch(
        token_id=column["token_id"].long(),
        mask=torch.ones(len(rows), 1, dtype=torch.bool),
        advantage=column["advantage"],
        old_logp=column["old_logp"],
        old_entropy=column["old_entropy"],
        uid=torch.tensor(rows.index.get_level_values("uid").to_numpy()),
    )
    return batch, stats


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("plain")
    trainer = make_trainer(home / "out", **TWO_STEPS)
    attach(trainer, home / "run")
    trainer.train()
    return home / "run"


@pytest.mark.parametrize("name", ["steer", "entropy_advantage", "fork_tokens"])
def test_a_plan_reaches_the_loss_as_weights_on_the_gradient(
    plain: Path, tmp_path: Path, name: str
) -> None:
    """The same responses and weights: c of a token is its plan's weight times c of TRL's own loss,
    and the plan is that of the whole step, both of its micro-batches."""
    trainer = make_trainer(tmp_path / "out", **TWO_STEPS)
    attach(trainer, tmp_path / "run", method=name)
    trainer.train()
    own, carried = first_step(plain), first_step(tmp_path / "run")
    assert own["token_id"].equals(carried["token_id"]) and own["micro"].nunique() == 2
    plan = make_method(name).plan(*as_batch(own))
    wanted = np.ones(len(own)) * (plan.weight * plan.mask).squeeze(1).numpy()
    assert np.allclose(carried["weight"], wanted, atol=1e-5)
    assert np.allclose(carried["grad_logp"], wanted * own["grad_logp"], atol=1e-7)
    assert wanted.std() > 0.01
    info = load(tmp_path / "run").info
    assert info["method"]["name"] == name and info["adapter"]["scope"] in ("minibatch", "")
    assert trainer.epsilon_low == 0.2, "the trainer's own settings come back"


def test_clip_bounds_are_the_methods(tmp_path: Path) -> None:
    settings = {"num_iterations": 4, "max_steps": 4, "learning_rate": 3e-2}
    trainer = make_trainer(tmp_path / "out", **settings)
    method = {"name": "clip_higher", "clip_low": 0.05, "clip_high": 0.4}
    attach(trainer, tmp_path / "run", method=method)
    trainer.train()
    rows = load(tmp_path / "run").tokens()
    ratio, up = np.exp(rows["logp"] - rows["old_logp"]), rows["advantage"] > 0
    clipped = (up & (ratio > 1.4)) | ((rows["advantage"] < 0) & (ratio < 0.95))
    pushed = rows["advantage"] != 0
    assert ((rows["grad_logp"] == 0) == clipped)[pushed].all()
    assert (clipped & ~up).sum() > 3 and (up & (ratio > 1.2) & ~clipped).sum() > 0


def test_an_entropy_bonus_has_the_gradient_of_the_mean(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", max_steps=1)
    attach(trainer, tmp_path / "run", method={"name": "entropy_bonus", "beta": 0.3})
    trainer.train()
    rows = load(tmp_path / "run").tokens()
    assert np.allclose(rows["grad_entropy"], 0.3 / len(rows), rtol=1e-4)


def test_a_methods_own_advantages_replace_trls(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", max_steps=2)
    attach(trainer, tmp_path / "run", method="rloo")
    trainer.train()
    samples = load(tmp_path / "run").samples()
    total = samples.groupby("group")["reward"].transform("sum")
    wanted = samples["reward"] - (total - samples["reward"]) / 3  # leave one out of four
    assert np.allclose(samples["advantage"], wanted, atol=1e-6)


def test_a_controller_moves_with_the_steps(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", max_steps=3)
    method = {"name": "adaptive_entropy", "variant": "trl", "target": 3.0, "delta": 0.1}
    attach(trainer, tmp_path / "run", method=method)
    trainer.train()
    run = load(tmp_path / "run")
    assert np.allclose(run.steps()["method_beta"], [0.0, 0.1, 0.2])
    rows = run.tokens()
    for step, beta in ((0, 0.0), (1, 0.1), (2, 0.2)):
        mine = rows[rows["step"] == step]
        assert np.allclose(mine["grad_entropy"], beta / len(mine), rtol=1e-4)


REFUSED = {
    "kl_cov": r"kl_cov cannot be carried by TRL's loss: it adds \|logp - old_logp\|",
    "cispo": "whatever the sign of the advantage",
    "ce_gppo": "keeps a gradient beyond the clip",
    "gspo": "its ratio is per sequence, importance_sampling_level is 'token'",
    "entropy_target": "needs the gradient of the whole step",
    "dr_grpo": "averages by constant, loss_type = 'dapo' does not",
    "stear": "did you mean steer",
}


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that is only looked at."""
    return make_trainer(tmp_path_factory.mktemp("idle"))


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_loss_cannot_carry_is_refused_with_the_reason(
    idle: Any, tmp_path: Path, name: str
) -> None:
    more = {"dr_grpo": {"constant_length": 6}, "gspo": {"normaliser": "token_mean"}}
    settings = more.get(name, {})
    with pytest.raises(ConfigError, match=REFUSED[name]):
        attach(idle, tmp_path / "run", method={"name": name, **settings})
    assert not hasattr(idle, "_entropy_lab") and "train" not in vars(idle)


def test_a_loss_without_a_clip_carries_no_clip(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type="sapo")
    with pytest.raises(ConfigError, match="it clips the ratio, and loss_type = 'sapo' has no clip"):
        attach(trainer, tmp_path / "run", method="steer")


def test_what_attach_cannot_watch_is_refused(idle: Any, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="watches a GRPOTrainer of trl, got object"):
        attach(object(), tmp_path / "run")
    with pytest.raises(ConfigError, match="no option fracton; did you mean fraction"):
        attach(idle, tmp_path / "run", fracton=0.5)
    with pytest.raises(ConfigError, match="attach sets temperature itself"):
        attach(idle, tmp_path / "run", temperature=1.0)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="already holds a run"):
        attach(idle, tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr(idle, "use_liger_kernel", True, raising=False)
        with pytest.raises(ConfigError, match="use_liger_kernel computes the loss without"):
            attach(idle, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(idle, "loss_type", "next_one")
        with pytest.raises(ConfigError, match="loss_type = 'next_one' is not one"):
            attach(idle, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "2.0.1")
        with pytest.raises(ConfigError, match=r"trl 2\.0\.1 is not one that this adapter knows"):
            attach(idle, tmp_path / "run")
    attachment = attach(idle, tmp_path / "run")
    with pytest.raises(ConfigError, match="has a probe already"):
        attach(idle, tmp_path / "run")
    attachment.close()
    assert not hasattr(idle, "_entropy_lab")


def test_a_subclass_whose_forward_takes_other_arguments_is_named(tmp_path: Path) -> None:
    from trl import GRPOTrainer

    class Other(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, batch, model=None):
            return None

    trainer = make_trainer(tmp_path, cls=Other)
    with pytest.raises(ConfigError, match="does not begin with model, input_ids"):
        attach(trainer, tmp_path / "run")


def test_a_users_own_loss_is_measured_as_it_is(tmp_path: Path) -> None:
    """A term that does not pass through logp or entropy shows as its share of the gradient."""
    from trl import GRPOTrainer

    class Decayed(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            weight = self.model.get_input_embeddings().weight
            return super()._compute_loss(model, inputs) + weight.square().sum()

    ends = []
    for watched in (False, True):
        trainer = make_trainer(tmp_path / f"{watched}", cls=Decayed, max_steps=2)
        if watched:
            attach(trainer, tmp_path / "run")
        trainer.train()
        ends.append(list(trainer.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    steps = load(tmp_path / "run").steps()
    assert 0.01 < steps["gradient_audit"].iloc[0] < 1


def test_a_loss_that_cannot_be_told_the_weights_ends_the_run(tmp_path: Path) -> None:
    from trl import GRPOTrainer

    class Early(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, dict(inputs))  # a copy: nobody can write into it

    trainer = make_trainer(tmp_path / "out", cls=Early, max_steps=2)
    attach(trainer, tmp_path / "run", method="steer")
    with pytest.raises(RunError, match="does not have the weights of steer"):
        trainer.train()
    assert load(tmp_path / "run").info["status"] == "failed"


def test_scope_microbatch_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "max_steps": 3}
    trainer = make_trainer(tmp_path / "out", **settings)
    attach(trainer, tmp_path / "run", method="steer")
    assert "scope microbatch; minibatch was asked for: a step of 2 micro-batches" in caplog.text
    trainer.train()
    told = load(tmp_path / "run").info["adapter"]
    assert told["scope"] == "microbatch" and "mixes rollouts" in told["scope_reason"]
