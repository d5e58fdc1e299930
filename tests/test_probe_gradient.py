"""grad_logp and grad_entropy by hooks, the gradient audit, and predictions through the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from entropy_lab import Probe, TokenBatch, load, policy_loss, token_stats
from entropy_lab.interventions import INTERVENTIONS, make_method, plan_step
from entropy_lab.probe.audit import gradient_audit
from entropy_lab.probe.scorer import Scorer
from entropy_lab.types import TokenGrad
from token_examples import REQUIRED
from toy import Toy, adamw, batches, run_loop, score_of

METHOD_PARAMS = {
    **REQUIRED,
    "clip_cov": {"ratio": 0.1, "lb": 0.01, "ub": 5.0},
    "kl_cov": {"ratio": 0.1},
    "gspo": {"clip_low": 0.1, "clip_high": 0.1},
}


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_grad_by_hook_equals_autograd_on_leaves(tmp_path: Path, name: str) -> None:
    model = Toy(dtype=torch.float64)
    micros = [
        (rows, replace(batch, influence_marginal=batch.advantage * batch.old_logp * 1e-5))
        for rows, batch in batches(model, 3, 8, torch.float64)
    ]
    method = make_method(name, **METHOD_PARAMS.get(name, {}))
    score = score_of(model)
    stats = [score(rows).detach() for rows, _ in micros]
    plans = plan_step(method, [b for _, b in micros], stats)
    probe = Probe(model, adamw(model), tmp_path / "run", score)
    for (rows, batch), (plan, share) in zip(micros, plans, strict=True):
        policy_loss(probe.record(rows, batch), batch, plan, share).loss.backward()
    for record, s, (_, batch), (plan, share) in zip(
        probe.window.records, stats, micros, plans, strict=True
    ):
        leaf = s.map(torch.clone)
        leaf.logp.requires_grad_(True)
        leaf.entropy.requires_grad_(True)
        loss = policy_loss(leaf, batch, plan, share).loss
        c, e = torch.autograd.grad(loss, [leaf.logp, leaf.entropy], allow_unused=True)
        assert torch.equal(record.grad.grad_logp, -c)
        assert torch.equal(record.grad.grad_entropy, torch.zeros_like(c) if e is None else -e)
        assert record.grad.grad_logp.abs().sum() > 0
    probe.close()


def test_gradients_add_up_over_several_backward_calls(tmp_path: Path) -> None:
    model = Toy()
    rows, batch = batches(model, 3, 16)[0]
    probe = Probe(model, adamw(model), tmp_path / "run", score_of(model))
    stats = probe.record(rows, batch)
    (2.0 * stats.logp.sum()).backward(retain_graph=True)
    (3.0 * stats.logp.sum() + stats.entropy.sum()).backward()
    grad = probe.window.records[0].grad
    assert (grad.grad_logp == -5.0).all() and (grad.grad_entropy == -1.0).all()
    probe.close()


def test_gradient_audit_passes_a_clean_loss_and_catches_a_planted_one(tmp_path: Path) -> None:
    clean, planted = Toy(), Toy()
    run_loop(clean, adamw(clean), tmp_path / "clean", clip=0.1, floor_every=1)
    run_loop(
        planted, adamw(planted), tmp_path / "planted", clip=0.1, floor_every=1,
        extra_loss=lambda m: 0.01 * m.head.weight.square().sum(),
    )  # fmt: skip
    assert load(tmp_path / "clean").steps()["gradient_audit"].max() <= 1e-4
    assert load(tmp_path / "planted").steps()["gradient_audit"].min() > 1e-2


def test_gradient_audit_measures_the_planted_share() -> None:
    """The share is known: the planted gradient is orthogonal to nothing, its norm is chosen."""
    model = Toy(dtype=torch.float64)
    rows, batch = batches(model, 3, 16, torch.float64)[0]
    score = score_of(model)
    scorer = Scorer(model, score, adamw(model))
    stats = score(rows)
    (-stats.logp.sum() * 0.7).backward()
    grad = TokenGrad(torch.full_like(stats.logp, 0.7), torch.zeros_like(stats.logp))
    assert gradient_audit(scorer, [(rows, grad)], 1.0)[0] < 1e-12
    norm = float(sum(p.grad.square().sum() for p in model.parameters()) ** 0.5)
    model.embed.weight.grad += 0.0
    bump = torch.zeros_like(model.head.bias)
    bump[0] = 0.1 * norm
    model.head.bias.grad += bump
    seen = float(sum(p.grad.square().sum() for p in model.parameters()) ** 0.5)
    share, _ = gradient_audit(scorer, [(rows, grad)], 1.0)
    assert share == pytest.approx(0.1 * norm / seen, rel=1e-9)


def test_fitted_kappa_is_the_clipping_factor(tmp_path: Path) -> None:
    model = Toy()
    optimizer = adamw(model)
    probe = Probe(model, optimizer, tmp_path / "run", score_of(model), floor_every=1)
    rows, batch = batches(model, 3, 16)[0]
    (-(probe.record(rows, batch).logp * batch.mask).sum()).backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.25))
    optimizer.step()
    probe.close()
    steps = load(tmp_path / "run").steps()
    assert steps["kappa"][0] == pytest.approx(0.25 / (norm + 1e-6), rel=1e-4)
    assert steps["gradient_audit"][0] <= 1e-4


def test_on_a_tabular_policy_under_sgd_the_log_shows_softmax_state_exact(tmp_path: Path) -> None:
    """One row of logits per state: the whole chain loss -> hooks -> lr -> columns is then exact
    to first order, slope one, and its error falls with the step."""
    errors = []
    for lr in (1e-1, 1e-2):
        g = torch.Generator().manual_seed(0)
        model = nn.Embedding(6, 9)
        model.weight.data = torch.randn(6, 9, generator=g, dtype=torch.float64)
        states = torch.randint(6, (40, 1), generator=g)
        tokens = torch.randint(9, (40, 1), generator=g)
        advantage = torch.randn(40, 1, generator=g, dtype=torch.float64)

        def score(inputs, model=model):
            return token_stats(model(inputs[0]), inputs[1])

        with torch.no_grad():
            old = score((states, tokens))
        batch = TokenBatch(
            tokens, torch.ones(40, 1, dtype=torch.bool), advantage, old.logp, state=states
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        method = make_method("entropy_bonus", beta=0.3)
        with Probe(model, optimizer, tmp_path / f"{lr}", score) as probe:
            plan = method.plan(batch, None)
            policy_loss(probe.record((states, tokens), batch), batch, plan).loss.backward()
            optimizer.step()
        rows = load(tmp_path / f"{lr}").tokens()
        actual, predicted = rows["dH"].to_numpy(), rows["dH_pred_softmax_state"].to_numpy()
        assert np.corrcoef(actual, predicted)[0, 1] > 0.999
        errors.append(np.abs(actual - predicted).max() / np.abs(actual).max())
    assert errors[1] < 0.2 * errors[0] and errors[1] < 0.01
