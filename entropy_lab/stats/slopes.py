"""Derivatives of logp and entropy in a row's logits, one vocabulary tile at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from entropy_lab.stats.moments import FLOOR


@dataclass(frozen=True)
class _Rows:
    """What the logits of n rows are differentiated with: all (n, 1).

    peak and log_sum give log pi = z - peak - log_sum.
    """

    FLOATS: ClassVar = ("entropy", "peak", "log_sum")
    token_id: Tensor
    entropy: Tensor
    peak: Tensor
    log_sum: Tensor

    @classmethod
    def of(cls, token_id: Tensor, *columns: Tensor) -> _Rows:
        return cls(token_id.reshape(-1, 1).long(), *(c.reshape(-1, 1) for c in columns))

    def __getitem__(self, rows: slice) -> _Rows:
        return self.map(lambda column: column[rows])

    def map(self, fn: Callable[[Tensor], Tensor]) -> _Rows:
        return _Rows(fn(self.token_id), fn(self.entropy), fn(self.peak), fn(self.log_sum))

    def pick(self, z: Tensor, first: int) -> Tensor:
        """z (n, v) at each row's token, (n,), or 0 where it is not among the columns."""
        column = self.token_id - first
        inside = (column >= 0) & (column < z.shape[1])
        found = z.gather(1, column.clamp(0, z.shape[1] - 1))
        return found.masked_fill(~inside, 0.0).squeeze(1)

    def log_pi(self, z: Tensor) -> Tensor:
        return (z - self.peak).clamp_(min=FLOOR[z.dtype]).sub_(self.log_sum)

    def is_nan(self) -> Tensor:
        return ~torch.isfinite(self.log_sum)


@dataclass(frozen=True)
class _Pull:
    """Gradients that arrive at logp and entropy of n rows, (n, 1) each.

    offset = g_logp + g_entropy H; unused rows are those where both are 0.
    """

    rows: _Rows
    g_logp: Tensor
    g_entropy: Tensor
    offset: Tensor

    @classmethod
    def of(cls, rows: _Rows, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> _Pull:
        zero = torch.zeros_like(rows.entropy)
        g_logp = zero if grad_logp is None else grad_logp.reshape(-1, 1)
        g_entropy = zero if grad_entropy is None else grad_entropy.reshape(-1, 1)
        # An unused row (padding) may hold NaN; its gradient is 0, not 0 * NaN.
        offset = g_logp + (g_entropy * rows.entropy).masked_fill(g_entropy == 0, 0.0)
        return cls(rows, g_logp, g_entropy, offset)

    def __getitem__(self, rows: slice) -> _Pull:
        return self.map(lambda column: column[rows])

    def map(self, fn: Callable[[Tensor], Tensor]) -> _Pull:
        return _Pull(self.rows.map(fn), fn(self.g_logp), fn(self.g_entropy), fn(self.offset))

    def unused_nan(self) -> Tensor:
        """Rows (n, 1) whose gradient must be set to 0 because it comes out as NaN."""
        return (self.g_logp == 0) & (self.g_entropy == 0) & self.rows.is_nan()

    def known(self) -> Tensor:
        """(5, n) g_logp, g_H, offset, peak, log S0, as the kernel wants them."""
        columns = [self.g_logp, self.g_entropy, self.offset, self.rows.peak, self.rows.log_sum]
        return torch.cat(columns, 1).t().contiguous()

    def logit_grad(self, z: Tensor, first: int) -> Tensor:
        """g_logp (1[v = a] - pi_v) - g_H pi_v (log pi_v + H) of the columns from `first` on."""
        log_pi = self.rows.log_pi(z)
        dz = log_pi.exp().neg_()
        dz.mul_(log_pi.mul_(self.g_entropy).add_(self.offset))
        ids = self.rows.token_id
        inside = (ids >= first) & (ids < first + dz.shape[1])
        column = (ids - first).clamp_(0, dz.shape[1] - 1)
        return dz.scatter_add_(1, column, self.g_logp.masked_fill(~inside, 0.0).to(dz.dtype))


def _logit_push(rows: _Rows, z: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    """sum pi dz and sum pi (log pi + H) dz over the columns of one tile, (n,) each."""
    log_pi = rows.log_pi(z)
    push = log_pi.exp().mul_(dz)
    return push.sum(1), push.mul_(log_pi.add_(rows.entropy)).sum(1)


def _refuse_tangent(*tensors: Tensor) -> None:
    if any(unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            "forward-mode AD through the backward of the statistics: take a finite difference "
            "of their gradient instead"
        )
