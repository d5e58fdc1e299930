"""Group baselines: from one reward per response to one advantage per response."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.stats.quantile import quantile

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def group_relative(
    reward: Float[Tensor, " B"], group: Int[Tensor, " B"], std: bool = True, eps: float = 1e-6
) -> Float[Tensor, " B"]:
    """A = (R - mean) / (std + eps) within each group, std with n - 1 (GRPO, arXiv 2402.03300).

    std=False leaves A = R - mean (Dr. GRPO, 2503.20783). Groups whose rewards are all equal get
    exactly 0. reward (B,) float, group (B,) int ids in any order; returns (B,) in reward's dtype.
    Raises ValueError on shapes that do not fit and, with std, on a group of one response.
    """
    index, count = _groups(reward, group)
    value = reward.double()  # 0/1 rewards in float32 would leave rounding / eps
    centred = value - (_sum(value, index, count) / count)[index]
    if std:
        _need_two(group, index, count, "std with n - 1 is undefined; use std=False")
        centred = centred / (_std(value, index, count) + eps)[index]
    return centred.masked_fill(_all_equal(value, index, count)[index], 0.0).to(reward.dtype)


def leave_one_out(reward: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """A_i = R_i - mean of the other rewards of the group (RLOO, arXiv 2402.14740).

    reward (B,) float, group (B,) int ids in any order; returns (B,) in reward's dtype.
    Raises ValueError on shapes that do not fit and on a group of one response.
    """
    index, count = _groups(reward, group)
    _need_two(group, index, count, "it has no other response to compare with")
    value = reward.double()
    others = _sum(value, index, count)[index] - value
    advantage = value - others / (count[index] - 1)
    return advantage.masked_fill(_all_equal(value, index, count)[index], 0.0).to(reward.dtype)


def length_weighted(
    reward: Float[Tensor, " B"], group: Int[Tensor, " B"], length: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """A_i = R_i - sum_j l_j R_j / sum_j l_j over the group (OPO, arXiv 2505.23585).

    reward (B,) float, group (B,) int ids in any order, length (B,) tokens of each response;
    returns (B,) in reward's dtype.
    Raises ValueError on shapes that do not fit and on a group without any token.
    """
    index, count = _groups(reward, group)
    if length.shape != reward.shape:
        raise ValueError(
            f"length has shape {tuple(length.shape)} but reward has {tuple(reward.shape)}: pass "
            "one length per response"
        )
    value, weight = reward.double(), length.double()
    total = _sum(weight, index, count)
    if bool((total <= 0).any()):
        empty = int(group[total[index] <= 0][0])
        raise ValueError(f"group {empty} has no token: leave it out of the batch")
    advantage = value - (_sum(weight * value, index, count) / total)[index]
    return advantage.masked_fill(_all_equal(value, index, count)[index], 0.0).to(reward.dtype)


def quantile_relative(
    reward: Float[Tensor, " B"],
    group: Int[Tensor, " B"],
    k: float,
    interpolate: bool = False,
    eps: float = 1e-6,
) -> Float[Tensor, " B"]:
    """A = (R - Q_K) / (std + eps), Q_K the K-quantile of the group (QAE, arXiv 2509.22611).

    Q_K = inf{x: F(x) >= K}; interpolate=True goes between the sorted rewards instead, as the
    released code does. std with n - 1. With 0/1 rewards and a success rate p, the failures of a
    hard group (p <= 1 - K) and the successes of an easy one get exactly 0.
    reward (B,) float, group (B,) int ids in any order, K in (0, 1); returns (B,) in reward's dtype.
    Raises ValueError on shapes that do not fit and on a group of one response.
    """
    index, count = _groups(reward, group)
    _need_two(group, index, count, "std with n - 1 is undefined")
    value = reward.double()
    members = range(len(count))
    baseline = torch.stack([quantile(value[index == g], k, interpolate) for g in members])
    advantage = (value - baseline[index]) / (_std(value, index, count) + eps)[index]
    return advantage.masked_fill(_all_equal(value, index, count)[index], 0.0).to(reward.dtype)


def rank_penalised(
    reward: Float[Tensor, " B"],
    group: Int[Tensor, " B"],
    logp: Float[Tensor, " B"],
    beta: float,
    eps: float = 1e-6,
) -> Float[Tensor, " B"]:
    """Group-relative A of R (1 - beta (G - rank) / G), rank 1 the most likely (2506.02355).

    G counts the group's responses; all of them are ranked, by logp (B,), nats, the mean over a
    response's tokens; equal ones share the mean of their ranks. Groups whose rewards R are all
    equal get exactly 0: the source leaves them out, and rank alone would decide otherwise.
    reward (B,) float, group (B,) int ids in any order; returns (B,) in reward's dtype.
    Raises ValueError on shapes that do not fit and on a group of one response.
    """
    index, count = _groups(reward, group)
    if logp.shape != reward.shape:
        raise ValueError(
            f"logp has shape {tuple(logp.shape)} but reward has {tuple(reward.shape)}: pass one "
            "mean log-probability per response"
        )
    value = reward.double()
    size = count[index]
    kept = value * (1 - beta * (size - _rank(logp.double(), index, count)) / size)
    advantage = group_relative(kept, group, eps=eps)
    return advantage.masked_fill(_all_equal(value, index, count)[index], 0.0).to(reward.dtype)


def outcome(
    reward: Float[Tensor, " B"], correct: float = 1.0, wrong: float = -1.0
) -> Float[Tensor, " B"]:
    """A = correct where R is 1, wrong where R is 0 or -1: no baseline, no std (2506.01347).

    reward (B,) float; returns (B,) in reward's dtype. Raises ValueError on any other reward.
    """
    other = (reward != 1) & (reward != 0) & (reward != -1)
    if bool(other.any()):
        raise ValueError(
            f"reward {float(reward[other][0]):g} is neither 1 (correct) nor 0 or -1 (wrong): "
            "pass outcome rewards, or use a method with a baseline"
        )
    return torch.where(reward == 1, correct, wrong).to(reward.dtype)


def _groups(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """index (B,) in 0..G-1 and count (G,) of responses."""
    if reward.ndim != 1 or group.shape != reward.shape:
        raise ValueError(
            f"reward has shape {tuple(reward.shape)} and group {tuple(group.shape)}: both must "
            "be (B,), one entry per response"
        )
    _, index, count = torch.unique(group, return_inverse=True, return_counts=True)
    return index, count


def _sum(value: Tensor, index: Tensor, count: Tensor) -> Tensor:
    return value.new_zeros(count.shape).index_add_(0, index, value)


def _std(value: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """The standard deviation (G,) of each group, with n - 1."""
    centred = value - (_sum(value, index, count) / count)[index]
    return (_sum(centred * centred, index, count) / (count - 1)).sqrt()


def _rank(value: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """1 for the highest value of each group, (B,); equal values share the mean of their ranks."""
    order = value.argsort(descending=True)
    order = order[index[order].argsort(stable=True)]  # by group, then by value
    place = torch.arange(1, len(value) + 1, device=value.device, dtype=torch.float64)
    place = place - (count.cumsum(0) - count)[index[order]]
    keys = torch.stack([index[order].double(), value[order]])  # (2, B)
    _, run, size = torch.unique_consecutive(keys, dim=1, return_inverse=True, return_counts=True)
    rank = torch.empty_like(place)
    rank[order] = (_sum(place, run, size) / size)[run]
    return rank


def _all_equal(value: Tensor, index: Tensor, count: Tensor) -> Tensor:
    empty = value.new_zeros(count.shape)
    top = empty.scatter_reduce(0, index, value, "amax", include_self=False)
    bottom = empty.scatter_reduce(0, index, value, "amin", include_self=False)
    return top == bottom


def _need_two(group: Tensor, index: Tensor, count: Tensor, why: str) -> None:
    if bool((count < 2).any()):
        single = int(group[count[index] < 2][0])
        raise ValueError(
            f"group {single} has 1 response: {why}, or sample at least 2 responses a prompt"
        )
