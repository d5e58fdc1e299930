"""Methods that change the advantage: against golden vectors, their sources' loops, and grpo."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import make_method
from entropy_lab.loss import policy_loss
from entropy_lab.types import SELECTED, TokenBatch, TokenStats
from plain_losses import assert_parity, ppo, token_mean, wide, with_advantages
from token_examples import golden_batch, hand_made, loss_and_grad

# Groups of four: mixed, all wrong, all right, mixed with equal lengths.
GROUP = torch.arange(16) // 4
REWARD = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0]).double()


def grouped() -> tuple[TokenBatch, TokenStats]:
    batch, stats = wide(3, rows=16)
    mask = batch.mask.clone()
    mask[12:] = torch.arange(mask.shape[1]) < 5
    return replace(batch, mask=mask, group=GROUP, reward=REWARD), stats


def groups(values: Tensor) -> list[list[float]]:
    return [values[GROUP == g].tolist() for g in range(4)]


def per_token(batch: TokenBatch, rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)[:, None] * batch.mask


@pytest.mark.parametrize("name", ["rloo", "opo"])
def test_advantages_equal_the_golden_ones(name: str) -> None:
    golden, batch, _ = golden_batch()
    found = make_method(name).advantages(batch).numpy()
    np.testing.assert_allclose(found, golden[f"advantage_{name}"], rtol=0, atol=1e-9)


def source_advantage(name: str, batch: TokenBatch, params: dict[str, Any]) -> list[float]:
    """The sources' advantages, group by group, in plain Python."""
    lengths = groups(batch.mask.sum(1).double())
    means = (batch.old_logp * batch.mask).sum(1) / batch.mask.sum(1)
    found: list[float] = []
    for g, (rewards, length, logp) in enumerate(
        zip(groups(REWARD), lengths, groups(means), strict=True)
    ):
        n, mean = len(rewards), statistics.fmean(rewards)
        std = statistics.stdev(rewards) + 1e-6
        if name == "dr_grpo":
            found += [r - mean for r in rewards]
        elif name == "rloo":
            found += [r * n / (n - 1) - mean * n / (n - 1) for r in rewards]
        elif name == "opo":
            base = sum(a * b for a, b in zip(length, rewards, strict=True)) / sum(length)
            found += [r - base for r in rewards]
        elif name == "qae":
            q = np.quantile(rewards, params.get("k", 0.4), method=params["method"])
            found += [(r - q) / std for r in rewards]
        else:
            # argsort of argsort: 0 for the least likely, as in the released code.
            rank = np.argsort(np.argsort(logp)) / n
            kept = [
                r * (1 - k * params.get("beta", 0.25)) for r, k in zip(rewards, rank, strict=True)
            ]
            mean, std = statistics.fmean(kept), statistics.stdev(kept) + 1e-6
            found += [(k - mean) / std if g in (0, 3) else 0.0 for k in kept]
    return found


CASES = [
    ("dr_grpo", {"constant_length": 9}, {}),
    ("rloo", {}, {}),
    ("opo", {}, {}),
    ("qae", {}, {"method": "inverted_cdf"}),
    ("qae", {"interpolate": True}, {"method": "linear"}),
    ("qae", {"k": 0.8}, {"k": 0.8, "method": "inverted_cdf"}),
    ("unlikeliness", {}, {}),
    ("unlikeliness", {"beta": 0.9}, {"beta": 0.9}),
]


@pytest.mark.parametrize(("name", "params", "source_params"), CASES)
def test_loss_and_gradient_are_the_source_s(name: str, params: dict, source_params: dict) -> None:
    batch, stats = grouped()
    method = make_method(name, **params)
    advantage = per_token(batch, source_advantage(name, batch, source_params))
    torch.testing.assert_close(method.advantages(batch), advantage, rtol=1e-9, atol=1e-12)
    clips = {"qae": (0.2, 0.28, 10.0), "rloo": (0.2, 0.2, 10.0), "opo": (0.2, 0.2, 10.0)}

    def source(logp: Tensor) -> Tensor:
        ratio = torch.exp(logp - batch.old_logp)
        loss = ppo(ratio, advantage, *clips.get(name, (0.2, 0.2, math.inf)))
        if name == "dr_grpo":
            return ((loss * batch.mask).sum(1) / 9).mean()
        return token_mean(loss, batch.mask)

    acting = with_advantages(method, batch)
    assert_parity(acting, stats, method.plan(acting, None), source)


def gradient(name: str, batch: TokenBatch, stats: TokenStats, **params: Any) -> Tensor:
    method = make_method(name, **params)
    acting = with_advantages(method, batch)
    return loss_and_grad(acting, stats, method.plan(acting, stats))[1]


def unclipped() -> tuple[TokenBatch, TokenStats]:
    """The batch of `grouped` with ratios inside every clip."""
    batch, stats = grouped()
    noise = torch.tensor(np.random.default_rng(8).uniform(-0.1, 0.1, batch.mask.shape))
    return replace(batch, old_logp=stats.logp + noise), stats


def differing_groups(a: Tensor, b: Tensor, mask: Tensor) -> list[set[bool]]:
    """For each group, whether its tokens' gradients differ."""
    differs = ~torch.isclose(a, b, rtol=1e-6, atol=1e-12)
    return [set(differs[GROUP == g][mask[GROUP == g]].tolist()) for g in range(4)]


def test_std_free_methods_scale_the_gradient_of_mixed_groups_and_leave_the_others() -> None:
    batch, stats = unclipped()
    plain = gradient("grpo", batch, stats)
    std = torch.tensor([statistics.stdev(r) + 1e-6 for r in groups(REWARD)]).double()[GROUP, None]
    free = gradient("dr_grpo", batch, stats, constant_length=9)
    torch.testing.assert_close(free * (16 * 9) / batch.mask.sum(), plain * std)
    others = gradient("rloo", batch, stats)
    torch.testing.assert_close(others, plain * std * 4 / 3)
    for found in (free, others):
        assert differing_groups(found, plain, batch.mask) == [{True}, {False}, {False}, {True}]


def test_opo_differs_from_the_plain_mean_only_where_lengths_do() -> None:
    batch, stats = unclipped()
    std = torch.tensor([statistics.stdev(r) + 1e-6 for r in groups(REWARD)]).double()[GROUP, None]
    plain = gradient("grpo", batch, stats) * std
    found = gradient("opo", batch, stats)
    assert differing_groups(found, plain, batch.mask) == [{True}, {False}, {False}, {False}]


def test_qae_silences_one_side_of_each_group() -> None:
    batch, stats = unclipped()
    # Success rates 1/2, 0, 1, 1/4: the baseline at K = 0.4 is a failure, at 0.6 the first success.
    for k, silent in ((0.4, [0.0, None, None, 0.0]), (0.6, [1.0, None, None, 0.0])):
        found, plain = gradient("qae", batch, stats, k=k), gradient("grpo", batch, stats)
        for g, side in enumerate(silent):
            for i in torch.where(GROUP == g)[0].tolist():
                quiet = side is None or float(REWARD[i]) == side
                assert ((found[i][batch.mask[i]] == 0) == quiet).all()
        differs = differing_groups(found, plain, batch.mask)
        assert differs == [{True}, {False}, {False}, {True}]


def test_unlikeliness_leaves_groups_alone_that_hold_no_choice() -> None:
    batch, stats = unclipped()
    # In group 3 the one success becomes the least likely response: it keeps its whole reward.
    shift = torch.zeros_like(batch.old_logp)
    shift[13] = -50.0
    batch = replace(batch, old_logp=batch.old_logp + shift)
    stats = replace(stats, logp=stats.logp + shift)
    plain, found = (gradient(name, batch, stats) for name in ("grpo", "unlikeliness"))
    assert differing_groups(found, plain, batch.mask) == [{True}, {False}, {False}, {False}]
    same = gradient("unlikeliness", batch, stats, beta=0.0)
    torch.testing.assert_close(same, plain, rtol=1e-12, atol=1e-15)


def test_unlikeliness_by_hand_with_a_tie() -> None:
    batch = TokenBatch(
        token_id=torch.zeros(4, 2).long(),
        mask=torch.tensor([[True, True], [True, False], [True, True], [True, True]]),
        advantage=torch.zeros(4, 2).double(),
        old_logp=torch.tensor([[-1.0, -3], [-1, 50], [-2, -2], [-5, -5]]).double(),
        group=torch.zeros(4).long(),
        reward=torch.tensor([1.0, 1, 0, 1]).double(),
    )
    # Means -2, -1, -2, -5 give ranks 2.5, 1, 2.5, 4 and factors 1 - 0.4 (4 - rank) / 4.
    kept = [0.85, 0.7, 0.0, 1.0]
    mean, std = statistics.fmean(kept), statistics.stdev(kept)
    found = make_method("unlikeliness", beta=0.4).advantages(batch)
    assert found[:, 0].tolist() == pytest.approx([(k - mean) / (std + 1e-6) for k in kept])
    assert found[1, 1] == 0


@pytest.mark.parametrize("polarity", ["both", "positive", "negative"])
def test_w_reinforce_is_the_released_loss(polarity: str) -> None:
    batch, stats = grouped()
    right = REWARD == 1
    # The released code subsets the batch and then takes the mean over the tokens that are left.
    value, rows = {
        "both": (torch.where(right, 0.1, -1.0), right | True),
        "positive": (REWARD, right),
        "negative": (REWARD - 1, ~right),
    }[polarity]

    def source(logp: Tensor) -> Tensor:
        ratio = torch.exp(logp - batch.old_logp)[rows]
        return token_mean(ppo(ratio, value.double()[rows, None], 0.2, 0.2), batch.mask[rows])

    method = make_method("w_reinforce", polarity=polarity)
    acting = with_advantages(method, batch)
    plan = method.plan(acting, None)
    assert_parity(acting, stats, plan, source)
    if polarity != "both":
        dropped = batch.mask & ~rows[:, None]
        flags = policy_loss(stats, acting, plan).flags
        assert torch.equal(flags & SELECTED != 0, dropped)
        assert plan.scalars == {"selected": float(dropped.sum())}


def test_w_reinforce_by_hand() -> None:
    batch, stats = hand_made([0.0] * 3, [-1.0, -2.0, -3.0])
    batch = replace(batch, **{k: getattr(batch, k).view(3, 1) for k in
                              ("token_id", "mask", "advantage", "old_logp")},
                    reward=torch.tensor([1.0, 0.0, -1.0]).double())  # fmt: skip
    stats = stats.map(lambda x: x.view(3, 1))
    wanted = {
        "both": ([0.2, -1.0, -1.0], 3),
        "positive": ([1.0, 0.0, 0.0], 1),
        "negative": ([0.0, -1.0, -1.0], 2),
    }
    for polarity, (advantage, count) in wanted.items():
        method = make_method("w_reinforce", polarity=polarity, lambda_positive=0.2)
        acting = with_advantages(method, batch)
        assert acting.advantage[:, 0].tolist() == pytest.approx(advantage)
        loss, grad = loss_and_grad(acting, stats, method.plan(acting, None))
        assert loss == pytest.approx(-sum(advantage) / count)
        assert (-count * grad[:, 0]).tolist() == pytest.approx(advantage)


def test_w_reinforce_scales_right_responses_of_a_signed_grpo_and_leaves_wrong_ones() -> None:
    batch, stats = unclipped()
    signed = replace(batch, advantage=per_token(batch, (2 * REWARD - 1).tolist()))
    _, plain = loss_and_grad(signed, stats, make_method("grpo").plan(signed, None))
    found = gradient("w_reinforce", batch, stats)
    right = (REWARD == 1)[:, None]
    torch.testing.assert_close(found, torch.where(right, 0.1 * plain, plain))
    differs = ~torch.isclose(found, plain, rtol=1e-9, atol=0)
    assert torch.equal(differs, batch.mask & right)


def test_random_rewards_of_clip_lower_are_fair_coins_of_seed_and_uid() -> None:
    rows = 4000
    batch = TokenBatch(
        token_id=torch.zeros(rows, 1).long(),
        mask=torch.ones(rows, 1).bool(),
        advantage=torch.zeros(rows, 1).double(),
        old_logp=torch.zeros(rows, 1).double(),
        uid=torch.arange(rows),
        group=torch.arange(rows) // 4,
        seed=3,
    )
    method = make_method("clip_lower", clip_low=0.1, random_reward=True)
    found = method.advantages(batch)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    assert torch.equal(method.advantages(batch.rows(order)), found[order])
    other = method.advantages(replace(batch, seed=4))
    assert not torch.equal(other, found)
    # Heads in a group of four: 0 to 4 with chances 1, 4, 6, 4, 1 in 16. (R - mean) / std by hand.
    heads = (found.view(-1, 4) > 0).sum(1)
    counts = torch.bincount(heads, minlength=4)[:4] / (rows / 4)
    assert counts.tolist() == pytest.approx([2 / 16, 4 / 16, 6 / 16, 4 / 16], abs=0.05)
    one = found.view(-1, 4)[heads == 1][0].sort().values
    assert one.tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5], abs=1e-5)
    with pytest.raises(ValueError, match=r"clip_lower\.advantages reads batch\.group, which is No"):
        method.advantages(replace(batch, group=None))
