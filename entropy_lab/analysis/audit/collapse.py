"""How much of a method hangs on single tokens, and on how the step is cut into parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_lab.analysis.audit.candidate import Part, Push, Split
from entropy_lab.analysis.audit.rebuild import LoggedStep
from entropy_lab.types import TokenBatch, TokenStats

Array = NDArray[np.float64]

PINNED = 0.99  # of the step's largest weight
RARE = 0.1  # probability below which a token counts as rare
_QUANTILE = 0.99
_MICRO_DIVISORS = (1, 2, 4)
_RANKS = (2, 4)


@dataclass
class Collapse:
    """Numbers of each step, or of each unit over which the method takes its maximum."""

    pinned: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    argmax: list[float] = field(default_factory=list)

    def add_weights(self, weight: Array) -> None:
        """The weights (N,) of a step's tokens."""
        weight = weight[np.isfinite(weight)]
        if len(weight) and weight.max() > 0:
            self.pinned.append(float((weight >= PINNED * weight.max()).mean()))

    def add_omega(self, push: Push, mask: Tensor, logp: Tensor) -> None:
        """omega (B, T) of a plan, unit by unit."""
        if push.omega is None:
            return
        for rows in push.units:
            size = push.omega[rows][mask[rows]].double().abs()
            if not size.numel() or not bool(size.max() > 0):
                continue
            # numpy: torch.quantile refuses more than 2^24 values.
            tail = float(np.quantile(size.numpy(), _QUANTILE))
            self.peak.append(float(size.max()) / tail if tail > 0 else float("inf"))
            self.argmax.append(float(logp[rows][mask[rows]][size.argmax()].exp()))

    def numbers(self) -> dict[str, float]:
        """The columns of the table audit."""
        rare = [p < RARE for p in self.argmax]
        return {
            "pinned": _of(np.mean, self.pinned),
            "omega_peak": _of(np.median, self.peak),
            "argmax_probability": _of(np.median, self.argmax),
            "argmax_rare": _of(np.mean, rare),
        }


def _of(function, values: list) -> float:
    return float(function(values)) if values else float("nan")


def splits(step: LoggedStep, parts: list[Part]) -> Iterator[tuple[Split, int, list[Part]]]:
    """(kind, divisor, parts) of every other way to cut the step that its size allows.

    Micro-batches: each of the run's own cut into consecutive pieces of at most 1/divisor of the
    largest. Ranks: the step in `divisor` consecutive pieces.
    """
    whole = Part(TokenBatch.cat([p.batch for p in parts]), TokenStats.cat([p.stats for p in parts]))
    size = max(len(p.batch.mask) for p in parts)
    for divisor in _MICRO_DIVISORS:
        if size >= divisor:
            pieces = [q for p in parts for q in _cut(p, -(-size // divisor))]
            yield "micro-batch", divisor, pieces
    total = len(whole.batch.mask)
    for ranks in _RANKS:
        if total >= ranks:
            yield "rank", ranks, _cut(whole, -(-total // ranks))


def _cut(part: Part, size: int) -> list[Part]:
    starts = torch.arange(0, len(part.batch.mask), size).tolist()
    rows = [slice(a, a + size) for a in starts]
    return [Part(part.batch.rows(r), part.stats.rows(r)) for r in rows]
