"""Sums over vocabulary entries that merge across tiles, shards and devices, in any order.

Everything is taken relative to a maximum m: with x = z - m and e = exp(x), five sums S0 = sum e,
S1 = sum e x, T0 = sum e^2, T1 = sum e^2 x, T2 = sum e^2 x^2 give the statistics, with
entropy = log S0 - S1/S0, two non-negative terms. The usual lse - sum p z subtracts two large
numbers and loses three digits. (sum e x^2 enters none of the five, so it is not kept.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entropy_lab.types import TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float

# exp is exactly 0 below these, so raising -inf to them changes no sum and avoids 0 * inf.
FLOOR = {torch.float32: -110.0, torch.float64: -760.0}
# Elements whose intermediates fit a core's cache.
CHUNK = 1 << 17


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums over logits of `dtype` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Moments:
    """Maximum and five sums of each row over the vocabulary entries seen so far, (...) each.

    With x = z - peak and e = exp(x): s0 = sum e, s1 = sum e x, t0 = sum e^2, t1 = sum e^2 x,
    t2 = sum e^2 x^2. z are logits divided by the temperature. A vocabulary split over tiles,
    tensor-parallel ranks or devices is merged in any order; a fixed order gives the same bits.
    """

    peak: Float[Tensor, "*batch"]
    s0: Float[Tensor, "*batch"]
    s1: Float[Tensor, "*batch"]
    t0: Float[Tensor, "*batch"]
    t1: Float[Tensor, "*batch"]
    t2: Float[Tensor, "*batch"]

    @staticmethod
    def of(
        z: Float[Tensor, "*batch V"],
        at_least: Float[Tensor, "*batch"] | None = None,
        *,
        compile: bool = False,
    ) -> Moments:
        """The sums over the last axis of z (..., V), relative to max(max z, at_least).

        `at_least` is the peak of what they will be merged with, which saves a rescaling.
        float32, or float64 for float64 z. -inf entries count for nothing. compile: run the sums
        through torch.compile (one pass over the tile; the last digits may differ).
        """
        z = z.to(accumulation(z.dtype))
        if not compile:
            return _in_chunks(z, at_least)
        if at_least is None:  # one program instead of two
            at_least = z.new_full(z.shape[:-1], torch.finfo(z.dtype).min)
        return Moments(*_compiled_sums()(z, at_least))

    def merge(self, other: Moments) -> Moments:
        """The sums over both sets of entries: for m' = max, d = m - m' and r = exp(d),
        S1 <- r (S1 + d S0), S0 <- r S0, and likewise T with r^2."""
        peak = torch.maximum(self.peak, other.peak)
        pairs = zip(self._relative_to(peak), other._relative_to(peak), strict=True)
        return Moments(peak, *(a + b for a, b in pairs))

    def stats(self, z_a: Float[Tensor, "*batch"]) -> TokenStats:
        """The five statistics of the rows; z_a (...) is the sampled token's logit.

        With L = log S0: logp = (z_a - m) - L, entropy = L - S1/S0, m0 = T0/S0^2,
        m1 = (T1 - L T0)/S0^2, m2 = (T2 - 2 L T1 + L^2 T0)/S0^2. A row of -inf alone gives NaN.
        """
        log_sum = self.s0.log()
        square = self.s0 * self.s0
        return TokenStats(
            logp=(z_a - self.peak) - log_sum,
            entropy=log_sum - self.s1 / self.s0,
            m0=self.t0 / square,
            m1=(self.t1 - log_sum * self.t0) / square,
            m2=(self.t2 - 2 * log_sum * self.t1 + log_sum * log_sum * self.t0) / square,
        )

    def _relative_to(self, peak: Tensor) -> tuple[Tensor, ...]:
        d = (self.peak - peak).clamp(min=FLOOR[peak.dtype])
        r = d.exp()
        rr, dd = r * r, d * d
        return (
            r * self.s0,
            r * (self.s1 + d * self.s0),
            rr * self.t0,
            rr * (self.t1 + d * self.t0),
            rr * (self.t2 + 2 * d * self.t1 + dd * self.t0),
        )


def _columns(total: Moments, z_a: Tensor) -> Tensor:
    """(7, n): logp, entropy, m0, m1, m2, and what derivatives need: row maximum, log S0."""
    five = total.stats(z_a)
    known = [total.peak, total.s0.log()]
    return torch.stack([five.logp, five.entropy, five.m0, five.m1, five.m2, *known])


def _in_chunks(z: Tensor, at_least: Tensor | None) -> Moments:
    """`_sums`, on a CPU over few enough rows that the intermediates stay in its cache.

    Buffers of megabytes are also given back to the system and faulted in again at every tile.
    """
    rows = max(1, CHUNK // z.shape[-1])
    if z.ndim != 2 or len(z) <= rows or z.device.type != "cpu":
        return Moments(*_sums(z, at_least))
    parts = []
    for start in range(0, len(z), rows):
        chunk = slice(start, start + rows)
        parts.append(_sums(z[chunk], None if at_least is None else at_least[chunk]))
    return Moments(*map(torch.cat, zip(*parts, strict=True)))


def _sums(z: Tensor, at_least: Tensor | None) -> tuple[Tensor, ...]:
    """Peak, S0, S1, T0, T1, T2 of z (..., V)."""
    # Finite, so that -inf columns stay -inf after the subtraction instead of NaN.
    peak = z.amax(-1).clamp_(min=torch.finfo(z.dtype).min)
    if at_least is not None:
        peak = torch.maximum(at_least, peak)
    x = (z - peak.unsqueeze(-1)).clamp_(min=FLOOR[z.dtype])
    e = x.exp()
    ex = e * x
    s0, s1 = e.sum(-1), ex.sum(-1)
    t0 = torch.mul(e, e, out=x).sum(-1)
    t1 = e.mul_(ex).sum(-1)
    t2 = ex.mul_(ex).sum(-1)
    return peak, s0, s1, t0, t1, t2


@cache
def _compiled_sums() -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_sums, dynamic=False)
