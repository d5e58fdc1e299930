"""Which steps and which responses are probed: pure functions of (seed, step, micro-batch)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def is_probed(step: int, every: int) -> bool:
    """True on every `every`-th optimizer step, beginning with step 0; never where every is 0."""
    return every > 0 and step % every == 0


def is_every_nth(step: int, every: int, nth: int) -> bool:
    """True on every `nth`-th probed step, beginning with step 0; never where nth is 0."""
    return nth > 0 and is_probed(step, every) and step % (every * nth) == 0


def sampled_count(fraction: float, size: int) -> int:
    """How many of `size` responses of a micro-batch are probed: at least one."""
    return min(size, max(1, round(fraction * size)))


def inclusion_prob(fraction: float, size: int) -> float:
    """The probability with which each of `size` responses of a micro-batch is probed."""
    return sampled_count(fraction, size) / size


def sampled_rows(seed: int, step: int, micro: int, size: int, fraction: float) -> Tensor | None:
    """Sorted indices (B',) of the probed responses of a micro-batch; None means all of them.

    Whole responses, without replacement, each micro-batch a stratum of its own. Equal arguments
    give equal rows on every rank and after every resume; no global random state is used.
    """
    count = sampled_count(fraction, size)
    if count == size:
        return None
    rng = np.random.default_rng([seed, step, micro, 0x5EED])
    return torch.from_numpy(np.sort(rng.choice(size, count, replace=False)))
