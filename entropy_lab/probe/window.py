"""The micro-batches of one optimizer step, with what the loss said about their tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from entropy_lab.probe.sampling import sampled_count, sampled_rows
from entropy_lab.probe.scorer import Scorer, take_rows
from entropy_lab.types import NOT_SCORABLE, TRUNCATED, TokenBatch, TokenGrad, TokenStats


class MicroRecord:
    """One micro-batch of the update: inputs, loss forward, and the gradients that come back.

    `grad` fills up while the loss runs backward: tensor hooks on logp and entropy add
    c = -dL/dlogp and e = -dL/dentropy, over as many backward calls as there are.
    """

    def __init__(self, inputs: Any, batch: TokenBatch, stats: TokenStats):
        self.inputs = inputs
        self.batch = batch
        self.stats = stats.detach()
        self.weight = torch.ones_like(self.stats.logp)
        self.flags = torch.zeros_like(batch.mask, dtype=torch.uint8)
        if batch.truncated is not None:
            self.flags |= TRUNCATED * batch.truncated.to(torch.uint8)[:, None]
        self.grad = TokenGrad(torch.zeros_like(stats.logp), torch.zeros_like(stats.entropy))
        self._handles = [
            stats.logp.register_hook(self._adder(self.grad.grad_logp)),
            stats.entropy.register_hook(self._adder(self.grad.grad_entropy)),
        ]

    @staticmethod
    def _adder(into: Tensor):  # the hook returns None, so the gradient itself is left alone
        def add(gradient: Tensor | None) -> None:
            if gradient is not None:  # None: the loss does not use this statistic
                into.sub_(gradient.detach())

        return add

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


@dataclass
class Window:
    """All micro-batches whose gradients enter one optimizer step, as one padded batch."""

    records: list[MicroRecord] = field(default_factory=list)

    def batch(self) -> TokenBatch:
        return TokenBatch.cat([r.batch for r in self.records])

    def stats(self) -> TokenStats:
        return TokenStats.cat([r.stats for r in self.records])

    def grad(self) -> TokenGrad:
        return TokenGrad.cat([r.grad for r in self.records])

    def per_token(self, name: str) -> Tensor:
        """`weight` or `flags` of all records, (B, T) padded with zeros."""
        width = max(r.batch.mask.shape[1] for r in self.records)
        parts = [getattr(r, name) for r in self.records]
        return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])

    def close(self) -> None:
        for record in self.records:
            record.close()


@dataclass
class Probed:
    """The probed rows of one micro-batch and their statistics before and after the step.

    rows: sorted indices (B',) into the micro-batch, None for all; inclusion_prob: the chance that
    each response of the micro-batch had to be among them.
    """

    inputs: Any
    batch: TokenBatch
    rows: Tensor | None
    inclusion_prob: float
    before: TokenStats
    after: TokenStats | None = None

    @property
    def dH(self) -> Tensor:
        """H(after) - H(before), (B', T) nats, before any rounding; 0 outside the mask."""
        assert self.after is not None
        return torch.where(self.batch.mask, self.after.entropy - self.before.entropy, 0.0)

    @property
    def dlogp(self) -> Tensor:
        assert self.after is not None
        return torch.where(self.batch.mask, self.after.logp - self.before.logp, 0.0)


def choose(
    inputs: Any, batch: TokenBatch, seed: int, step: int, micro: int, fraction: float
) -> tuple[Any, TokenBatch, Tensor | None, float]:
    """The probed responses of a micro-batch: (inputs, batch, rows, inclusion probability)."""
    size = len(batch.token_id)
    rows = sampled_rows(seed, step, micro, size, fraction)
    if rows is None:
        return inputs, batch, None, 1.0
    share = sampled_count(fraction, size) / size
    return take_rows(inputs, rows), batch.rows(rows.to(batch.mask.device)), rows, share


def measure_before(chosen: tuple[Any, TokenBatch, Tensor | None, float], scorer: Scorer) -> Probed:
    inputs, batch, rows, share = chosen
    return Probed(inputs, batch, rows, share, before=scorer.measure(inputs))


def mark_not_scorable(flags: Tensor, *stats: TokenStats) -> Tensor:
    """Add NOT_SCORABLE where a logp or an entropy is not finite."""
    bad = torch.zeros_like(flags, dtype=torch.bool)
    for part in stats:
        bad |= ~(part.logp.isfinite() & part.entropy.isfinite())
    return torch.where(bad, flags | NOT_SCORABLE, flags)
