"""Group baselines: from one reward per response to one advantage per response."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
        variance = _sum(centred * centred, index, count) / (count - 1)
        centred = centred / (variance.sqrt() + eps)[index]
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
