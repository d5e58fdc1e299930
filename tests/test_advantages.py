"""Group baselines against golden vectors and plain Python."""

from __future__ import annotations

import statistics

import pytest
import torch

from entropy_lab.advantages import (
    group_relative,
    leave_one_out,
    length_weighted,
    outcome,
    quantile_relative,
    rank_penalised,
)
from golden import load_golden

# Four groups with ids in mixed order and of unequal size; group 4's rewards are all equal.
GROUP = torch.tensor([9, -3, 9, 1 << 40, -3, 9, 1 << 40, -3, 4, 4, 4])
REWARD = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.25, 0.0, 0.1, 0.1, 0.1])
LENGTH = torch.tensor([3, 5, 2, 8, 1, 4, 2, 7, 3, 6, 9])


def members(i: int) -> list[int]:
    return [j for j in range(len(GROUP)) if GROUP[j] == GROUP[i]]


@pytest.mark.parametrize("name", ["grpo", "rloo", "opo"])
def test_golden_advantages(name):
    golden = {k: torch.from_numpy(v) for k, v in load_golden().items()}
    group = torch.arange(16) // 8
    call = {
        "grpo": lambda r: group_relative(r, group),
        "rloo": lambda r: leave_one_out(r, group),
        "opo": lambda r: length_weighted(r, group, golden["mask"].sum(1)),
    }[name]
    got = call(golden["rewards"])[:, None] * golden["mask"]
    torch.testing.assert_close(got, golden[f"advantage_{name}"], rtol=0, atol=1e-9)


def test_group_relative_by_hand():
    for std in (True, False):
        got = group_relative(REWARD, GROUP, std=std, eps=1e-6)
        for i in range(len(GROUP)):
            rewards = [float(REWARD[j]) for j in members(i)]
            scale = statistics.stdev(rewards) + 1e-6 if std else 1.0
            want = (float(REWARD[i]) - statistics.fmean(rewards)) / scale
            assert float(got[i]) == pytest.approx(want, abs=1e-6)
    assert got.dtype == REWARD.dtype


def test_leave_one_out_by_hand():
    got = leave_one_out(REWARD, GROUP)
    for i in range(len(GROUP)):
        others = [float(REWARD[j]) for j in members(i) if j != i]
        assert float(got[i]) == pytest.approx(float(REWARD[i]) - statistics.fmean(others), abs=1e-6)


def test_length_weighted_by_hand():
    got = length_weighted(REWARD, GROUP, LENGTH)
    for i in range(len(GROUP)):
        total = sum(int(LENGTH[j]) for j in members(i))
        baseline = sum(int(LENGTH[j]) * float(REWARD[j]) for j in members(i)) / total
        assert float(got[i]) == pytest.approx(float(REWARD[i]) - baseline, abs=1e-6)


def test_quantile_relative_by_hand():
    # Group 9 is 1, 0.5, 0; group -3 is 0, 1, 0; group 2^40 is 1, 0.25 (n - 1: std 0.530330).
    lower, between = (
        quantile_relative(REWARD, GROUP, 0.4, interpolate=flag) for flag in (False, True)
    )
    for i, (low, mid) in {0: (0.5, 0.4), 5: (0.5, 0.4), 1: (0.0, 0.0), 3: (0.25, 0.55)}.items():
        std = statistics.stdev([float(REWARD[j]) for j in members(i)]) + 1e-6
        assert float(lower[i]) == pytest.approx((float(REWARD[i]) - low) / std, abs=1e-5)
        assert float(between[i]) == pytest.approx((float(REWARD[i]) - mid) / std, abs=1e-5)
    assert lower[8:].tolist() == between[8:].tolist() == [0.0] * 3


def test_rank_penalised_by_hand_shares_the_ranks_of_ties():
    logp = torch.tensor([-1.0, -5, -1, -2, -4, -3, -1, -4, 0, -1, -2])
    got = rank_penalised(REWARD, GROUP, logp, beta=0.3)
    # Ranks: group 9 is 1.5, 1.5, 3; group -3 is 3, 1.5, 1.5; group 2^40 is 2, 1.
    rank = [1.5, 3, 1.5, 2, 1.5, 3, 1, 1.5]
    kept = [float(REWARD[i]) * (1 - 0.3 * (1 - r / len(members(i)))) for i, r in enumerate(rank)]
    for i in range(8):
        own = [kept[j] for j in members(i)]
        want = (kept[i] - statistics.fmean(own)) / (statistics.stdev(own) + 1e-6)
        assert float(got[i]) == pytest.approx(want, abs=1e-5)
    # Equal rewards that are not 0 would be told apart by rank alone.
    assert got[8:].tolist() == [0.0] * 3
    order = torch.randperm(len(GROUP), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        rank_penalised(REWARD[order], GROUP[order], logp[order], 0.3), got[order]
    )


def test_outcome_by_hand():
    got = outcome(torch.tensor([1.0, 0.0, -1.0]), correct=0.1)
    torch.testing.assert_close(got, torch.tensor([0.1, -1.0, -1.0]))
    for wrong in (0.5, 2.0, float("nan")):
        with pytest.raises(ValueError, match=rf"reward {wrong:g} is neither 1 \(correct\) nor 0"):
            outcome(torch.tensor([1.0, wrong]))


def test_equal_rewards_give_exactly_zero():
    # 0.1 in float32: the rounding of a mean, divided by eps, would be an advantage of 1e-2.
    reward, group = torch.full((7,), 0.1), torch.zeros(7).long()
    for got in (
        group_relative(reward, group),
        group_relative(reward, group, std=False),
        leave_one_out(reward, group),
        length_weighted(reward, group, torch.arange(1, 8)),
        quantile_relative(reward, group, 0.4, interpolate=True),
        rank_penalised(reward, group, torch.arange(7.0), 0.25),
    ):
        assert torch.equal(got, torch.zeros(7))


def test_order_of_responses_does_not_matter():
    order = torch.randperm(len(GROUP), generator=torch.Generator().manual_seed(0))
    a = group_relative(REWARD, GROUP)[order]
    torch.testing.assert_close(group_relative(REWARD[order], GROUP[order]), a)


def test_errors():
    one = torch.tensor([5, 5, 8])
    reward = torch.tensor([1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="group 8 has 1 response: std with n - 1 is undefined"):
        group_relative(reward, one)
    assert float(group_relative(reward, one, std=False)[2]) == 0.0
    with pytest.raises(ValueError, match="group 8 has 1 response: it has no other response"):
        leave_one_out(reward, one)
    with pytest.raises(ValueError, match=r"reward has shape \(3,\) and group \(2,\)"):
        group_relative(reward, one[:2])
    with pytest.raises(ValueError, match=r"length has shape \(2,\) but reward has \(3,\)"):
        length_weighted(reward, one, torch.ones(2))
    with pytest.raises(ValueError, match="group 8 has 1 response: std with n - 1 is undefined"):
        quantile_relative(reward, one, 0.4)
    with pytest.raises(ValueError, match="group 8 has 1 response"):
        rank_penalised(reward, one, reward, 0.25)
    with pytest.raises(ValueError, match=r"logp has shape \(2,\) but reward has \(3,\)"):
        rank_penalised(reward, one, reward[:2], 0.25)
    with pytest.raises(ValueError, match="group 8 has no token"):
        length_weighted(reward, one, torch.tensor([1, 1, 0]))
