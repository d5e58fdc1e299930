"""Our methods as verl's policy losses, and their settings through verl's own config."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="needs verl: make test-verl")

import verl_cpu
from entropy_lab import load
from entropy_lab.errors import ConfigError
from entropy_lab.interventions import INTERVENTIONS

pytestmark = pytest.mark.verl
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean",
         "seq-mean-token-sum-norm")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict]]:
    verl_cpu.use_cpu()
    import entropy_lab.adapters.verl  # noqa: F401

    with verl_cpu.one_process():
        model = verl_cpu.save_model(tmp_path_factory.mktemp("verl") / "model")
        engine = verl_cpu.make_engine(model)
        yield engine, verl_cpu.as_new(engine)


@pytest.fixture
def engine(one_engine: tuple[Any, dict]) -> Any:
    engine, start = one_engine
    verl_cpu.as_new(engine, start)
    engine.test_start = start
    return engine


def tokens(seed: int = 0) -> dict[str, torch.Tensor]:
    """Arguments of a policy loss, some tokens beyond every clip bound."""
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(6, 5, generator=g) * 3
    return {
        "old_log_prob": old,
        "log_prob": (old + torch.randn(6, 5, generator=g) * 0.7).requires_grad_(),
        "advantages": torch.randn(6, 1, generator=g).expand(6, 5),
        "response_mask": torch.arange(5) < torch.tensor([[5], [3], [4], [1], [5], [2]]),
    }


def loss_of(name: str, config: Any, mode: str, **more: Any) -> tuple[float, torch.Tensor, dict]:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    given = tokens()
    loss, metrics = get_policy_loss_fn(name)(
        **given, loss_agg_mode=mode, config=config, rollout_is_weights=None, **more
    )
    (gradient,) = torch.autograd.grad(loss, given["log_prob"])
    return float(loss), gradient, metrics


def config_for(mode: str, **changes: Any) -> Any:
    config = verl_cpu.actor_config(loss_agg_mode=mode, **changes)
    config.global_batch_info.update(
        dp_size=2, batch_num_tokens=37, global_batch_size=12, loss_scale_factor=9
    )
    return config


@pytest.mark.parametrize("mode", MODES)
def test_grpo_is_verls_vanilla_loss(mode: str) -> None:
    config = config_for(mode, clip_ratio_high=0.28, clip_ratio_c=1.5)
    ours, theirs = loss_of("entropy_lab_grpo", config, mode), loss_of("vanilla", config, mode)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert torch.allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-9)
    assert ours[2]["actor/ppo_kl"] == pytest.approx(float(theirs[2]["actor/ppo_kl"]), abs=1e-6)
    assert (ours[1] == 0).any() and ours[1].abs().max() > 0


@pytest.mark.parametrize(
    ("name", "mode", "verls", "ours"),
    [
        ("cispo", "token-mean", {}, {}),
        (
            "kl_cov",
            "token-mean",
            {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.5},
            {"ratio": 0.2, "k": 0.5},
        ),
        ("gspo", "seq-mean-token-mean", {}, {}),
    ],
)
def test_methods_that_verl_has_too_have_its_gradient(
    name: str, mode: str, verls: dict[str, Any], ours: dict[str, Any]
) -> None:
    config = config_for(mode, clip_ratio_low=0.2, clip_ratio_high=0.25, method=ours, **verls)
    found, wanted = loss_of(f"entropy_lab_{name}", config, mode), loss_of(name, config, mode)
    assert torch.allclose(found[1], wanted[1], atol=1e-6) and wanted[1].abs().max() > 1e-3


def test_another_average_than_the_methods_is_refused() -> None:
    from entropy_lab.adapters.verl.losses import method_for

    message = r"gspo: normaliser 'seq_mean' needs .*loss_agg_mode=seq-mean-token-mean, and it is"
    with pytest.raises(ConfigError, match=message):
        method_for("gspo", {}, verl_cpu.actor_config())


def test_the_samplers_weight_is_a_factor_on_the_loss() -> None:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    config, found = config_for("token-mean"), []
    weight = torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) + 0.5
    for name in ("entropy_lab_grpo", "vanilla"):
        given = tokens()
        loss, _ = get_policy_loss_fn(name)(
            **given, loss_agg_mode="token-mean", config=config, rollout_is_weights=weight
        )
        found.append(torch.autograd.grad(loss, given["log_prob"])[0])
    assert torch.allclose(found[0], found[1], rtol=1e-5, atol=1e-9)


def test_steer_in_an_engine_has_the_weights_of_its_formula(engine: Any, tmp_path: Path) -> None:
    """w = exp(-k |Omega|), k = -ln(lambda_min)/max(|Omega|, 0.02) in the micro-batch, with the
    entropy that verl's engine computed."""
    section = {"run_dir": str(tmp_path / "run"), "strict": True}
    config = verl_cpu.actor_config(
        "entropy_lab_steer", {"lambda_min": 0.5}, entropy_lab=section, clip_ratio_high=0.28
    )
    with engine.train_mode():
        engine.train_batch(
            verl_cpu.minibatch(calculate_entropy=True), verl_cpu.loss_function(config)
        )
    from entropy_lab.adapters.verl import recorder_of

    recorder_of(engine).close()
    rows = load(tmp_path / "run").tokens()
    p, ratio = np.exp(rows.logp), np.exp(rows.logp - rows.old_logp)
    clipped = ((rows.advantage > 0) & (ratio > 1.28)) | ((rows.advantage < 0) & (ratio < 0.8))
    omega = np.where(clipped, 0, ratio * rows.advantage * p * (1 - p) * (rows.logp + rows.entropy))
    size = np.abs(omega)
    largest = rows.assign(size=size).groupby("micro")["size"].transform("max").clip(lower=0.02)
    wanted = np.clip(np.exp(math.log(0.5) / largest * size), 0.5, 1)
    assert rows.weight.to_numpy() == pytest.approx(wanted.to_numpy(), rel=1e-4)
    assert rows.weight.min() < 0.7 and rows.weight.max() == 1
    dual = (rows.advantage < 0) & (ratio > 3)
    push = np.where(clipped | dual, 0, rows.weight * ratio * rows.advantage / len(rows))
    assert rows.grad_logp.to_numpy() == pytest.approx(push, rel=1e-4, abs=1e-8)
    flagged = ((rows["flags"] & 3) > 0).to_numpy()
    assert (flagged == clipped.to_numpy()).all() and flagged.any()
    assert load(tmp_path / "run").steps().touched_share.item() > 0.5


def test_steer_without_entropy_says_what_to_set(engine: Any) -> None:
    config = verl_cpu.actor_config("entropy_lab_steer")
    with pytest.raises(ConfigError, match=r"set actor_rollout_ref\.actor\.calculate_entropy=True"):
        with engine.train_mode():
            engine.train_batch(verl_cpu.minibatch(), verl_cpu.loss_function(config))


def test_the_entropy_bonus_has_its_gradient(engine: Any, tmp_path: Path) -> None:
    section = {"run_dir": str(tmp_path / "run"), "strict": True}
    config = verl_cpu.actor_config("entropy_lab_entropy_bonus", {"beta": 0.1}, entropy_lab=section)
    with engine.train_mode():
        engine.train_batch(
            verl_cpu.minibatch(calculate_entropy=True), verl_cpu.loss_function(config)
        )
    from entropy_lab.adapters.verl import recorder_of

    recorder_of(engine).close()
    rows = load(tmp_path / "run").tokens()
    assert rows.grad_entropy.to_numpy() == pytest.approx(np.full(len(rows), 0.1 / len(rows)))


def test_a_method_that_draws_tokens_trains_without_a_recording(engine: Any) -> None:
    """The draw belongs to the token, the step and the seed: the same again, another later on."""
    found = []
    for steps in (1, 1, 2):
        config = verl_cpu.actor_config(
            "entropy_lab_clip_cov", {"lb": -1e9, "ub": 1e9, "ratio": 0.3}
        )
        loss = verl_cpu.loss_function(config)
        vars(engine).pop("_entropy_lab_steps", None)
        verl_cpu.as_new(engine, engine.test_start)
        with engine.train_mode():
            for _ in range(steps):
                verl_cpu.as_new(engine, engine.test_start)
                out = engine.train_batch(verl_cpu.minibatch(), loss)
        found.append(out["metrics"]["grad_norm"])
    assert found[0] == found[1] != found[2]


REFUSED = {
    "rloo": "it changes the advantages",
    "influence_steer": "it reads influence_marginal",
    "adaptive_entropy": "it keeps a memory",
    "entrocraft": "it reads the whole rollout",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_verl_cannot_carry_is_refused_with_the_reason(name: str) -> None:
    from entropy_lab.adapters.verl.losses import method_for
    from token_examples import EVERY_METHOD

    params = next(p for n, p in EVERY_METHOD if n == name)
    with pytest.raises(ConfigError, match=f"cannot train with entropy_lab_{name}: {REFUSED[name]}"):
        method_for(name, params, verl_cpu.actor_config())


def test_every_method_runs_or_is_refused() -> None:
    """No third way: a method that is let in gives a finite loss under verl's arguments."""
    from entropy_lab.adapters.verl.losses import method_for, verl_policy_loss
    from entropy_lab.adapters.verl.watch import Micro, current
    from token_examples import EVERY_METHOD

    class Fed(Micro):
        """A micro-batch that has an entropy for every token."""

        entropy = property(lambda self: torch.full((6, 5), 0.5))
        uid = property(lambda self: torch.arange(6))

        def field(self, name: str) -> torch.Tensor:
            return self.entropy

    run = set()
    for name, params in EVERY_METHOD:
        params = {k: v for k, v in params.items() if k != "scope"}
        config = config_for("token-mean", method=params)
        try:
            method_for(name, params, config)
        except ConfigError:
            continue
        given = tokens()
        micro = Fed({}, {})
        token = current.set(micro)
        try:
            loss, metrics = verl_policy_loss(name, **given, config=config)
        finally:
            current.reset(token)
        assert torch.isfinite(loss) and all(isinstance(v, float) for v in metrics.values())
        run.add(name)
    assert {"grpo", "clip_higher", "clip_cov", "kl_cov", "steer", "cispo", "ce_gppo",
            "quadrant", "entropy_bonus", "fork_tokens"} <= run  # fmt: skip
    assert run <= set(INTERVENTIONS)


def test_a_wrong_field_names_the_right_one() -> None:
    from entropy_lab.adapters.verl.losses import method_for

    with pytest.raises(ConfigError, match="steer has no parameter 'lambda_mim'.*lambda_min"):
        method_for("steer", {"lambda_mim": 0.5}, verl_cpu.actor_config())
