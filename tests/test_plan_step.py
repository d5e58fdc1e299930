"""What a method does to a token depends on neither the split of its step nor the order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import Method, make_method, plan_step
from entropy_lab.interventions.selection import choose, token_hash
from entropy_lab.loss import policy_loss, token_share
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats
from token_examples import (
    EVERY_METHOD,
    assert_same_plan,
    example,
)


def split(batch: TokenBatch, stats: TokenStats, sizes: list[int]):
    """Micro-batches of these sizes, each cut to its own longest response."""
    batches, known, start = [], [], 0
    for size in sizes:
        rows = slice(start, start + size)
        length = int(batch.mask[rows].sum(1).max())
        batches.append(batch.rows(rows).map(lambda x, n=length: x[:, :n] if x.ndim == 2 else x))
        known.append(stats.rows(rows).map(lambda x, n=length: x[:, :n]))
        start += size
    return batches, known


def by_token(method: Method, batch: TokenBatch, stats: TokenStats, sizes: list[int]) -> dict:
    """(uid, position) -> what the step does to that token, from the micro-batches' plans."""
    batches, known = split(batch, stats, sizes)
    found = {}
    for b, s, (plan, share) in zip(batches, known, plan_step(method, batches, known), strict=True):
        assert share.policy.shape == b.mask.shape
        _, grad = leaf_grad(b, s, plan, share)
        for i, t in b.mask.nonzero().tolist():
            assert b.uid is not None
            chosen = plan.selected is not None and bool(plan.selected[i, t])
            weight = plan.weight[i, t] if isinstance(plan.weight, Tensor) else plan.weight
            found[int(b.uid[i]), t] = (chosen, float(weight), float(grad[i, t]))
    return found


def leaf_grad(batch: TokenBatch, stats: TokenStats, plan: TokenPlan, share: Any):
    leaf = stats.logp.detach().clone().requires_grad_()
    loss = policy_loss(replace(stats, logp=leaf), batch, plan, share).loss
    return loss, torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize(("name", "params"), EVERY_METHOD)
def test_minibatch_scope_depends_on_neither_split_nor_order(
    name: str, params: dict[str, Any]
) -> None:
    _, batch, stats = example(1, rows=8)
    method = make_method(name, **params)
    whole = by_token(method, batch, stats, [8])
    order = torch.tensor(np.random.default_rng(2).permutation(8))
    for found in (
        by_token(method, batch, stats, [3, 1, 4]),
        by_token(method, batch, stats, [1] * 8),
        by_token(method, batch.rows(order), stats.rows(order), [5, 3]),
    ):
        assert found.keys() == whole.keys()
        for key, (chosen, weight, grad) in whole.items():
            assert found[key][0] == chosen, key
            assert found[key][1:] == pytest.approx((weight, grad), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("steer", {}),
        ("clip_cov", {"ratio": 0.1, "lb": 0.0, "ub": 3.0}),
        ("kl_cov", {"ratio": 0.1}),
        ("fork_tokens", {}),
    ],
)
def test_microbatch_scope_depends_on_the_split(name: str, params: dict[str, Any]) -> None:
    _, batch, stats = example(1, rows=8)
    method = make_method(name, scope="microbatch", **params)
    whole, parts = (by_token(method, batch, stats, sizes) for sizes in ([8], [4, 4]))
    assert whole == by_token(make_method(name, **params), batch, stats, [8])
    assert any(whole[key][:2] != parts[key][:2] for key in whole)
    # Each part is planned as if it were the step; only the denominator is the whole step's.
    batches, known = split(batch, stats, [4, 4])
    planned = plan_step(method, batches, known)
    for b, s, (plan, _) in zip(batches, known, planned, strict=True):
        assert_same_plan(plan, method.plan(b, s))
    shares = torch.cat(
        [share.policy[b.mask] for b, (_, share) in zip(batches, planned, strict=True)]
    )
    torch.testing.assert_close(shares, token_share(batch, TokenPlan()).policy[batch.mask])


def test_micro_batch_losses_add_up_to_the_loss_of_the_step() -> None:
    _, batch, stats = example(1, rows=8)
    batches, known = split(batch, stats, [3, 5])
    for normaliser in ("token_mean", "selected_mean", "seq_mean"):
        method = make_method("steer", normaliser=normaliser)
        parts = [
            policy_loss(s, b, plan, share).loss
            for b, s, (plan, share) in zip(
                batches, known, plan_step(method, batches, known), strict=True
            )
        ]
        whole = policy_loss(stats, batch, method.plan(batch, stats)).loss
        torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=1e-14)


def test_plan_step_refuses_lists_that_do_not_fit() -> None:
    _, batch, stats = example()
    with pytest.raises(ValueError, match="got 2 batches and 1 stats: pass one TokenStats for each"):
        plan_step(make_method("steer"), [batch, batch], [stats])
    with pytest.raises(ValueError, match="got 0 batches and None stats"):
        plan_step(make_method("grpo"), [], None)


def test_random_choice_follows_seed_and_step_and_nothing_else() -> None:
    _, batch, _ = example(rows=40, length=50)
    here = token_hash(batch)
    assert torch.equal(here, token_hash(batch))
    assert torch.equal(
        here[:, :20], token_hash(batch.map(lambda x: x[:, :20] if x.ndim > 1 else x))
    )
    assert not (here == token_hash(replace(batch, step=5))).any()
    assert not (here == token_hash(replace(batch, seed=10))).any()
    assert not (here == token_hash(replace(batch, seed=4, step=9))).any()
    assert here.unique().numel() == here.numel()
    # Signed 64-bit values spread evenly: mean 0 and a quarter in each quarter of the range.
    unit = here.double().flatten() / 2.0**63
    assert abs(float(unit.mean())) < 0.06
    assert all(abs(float((unit < q).double().mean()) - (q + 1) / 2) < 0.05 for q in (-0.5, 0.5))
    assert torch.equal(token_hash(replace(batch, seed=2**64 + 9)), here)


def test_every_candidate_is_equally_likely_to_be_chosen() -> None:
    _, batch, _ = example(rows=2, length=5)
    candidates = torch.ones_like(batch.mask)
    counts = torch.zeros(2, 5)
    for step in range(2000):
        counts += choose(replace(batch, step=step), candidates, 3)
    assert counts.sum() == 6000
    assert ((counts / 2000 - 0.3).abs() < 0.05).all()


def test_tied_scores_are_chosen_by_identity_not_by_place() -> None:
    _, batch, _ = example(rows=6, length=4)
    candidates, score = torch.ones_like(batch.mask), torch.zeros_like(batch.old_logp)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    kept = choose(batch, candidates, 5, score=score)
    moved = choose(batch.rows(order), candidates, 5, score=score)
    assert torch.equal(kept[order], moved)
