"""Triton kernels: the sums of `Moments` over given logits or over one tile of a matmul.

Imported only where logits lie on a CUDA device. One program owns one row and walks its columns in
blocks of a fixed size and order, with the running maximum and five sums in registers and no
atomics, so a row's result depends neither on its neighbours nor on their number. On a CPU the
kernels run in Triton's interpreter (TRITON_INTERPRET=1), for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from entropy_lab.stats.moments import Moments

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Fixed, never tuned at run time: they decide the order and the rounding of every sum.
_BLOCK = 4096
_LAUNCH: dict[str, Any] = {"BLOCK": _BLOCK, "num_warps": 8, "enable_fp_fusion": True}
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_FLOOR = tl.constexpr(-110.0)  # exp is exactly 0 below it


@triton.jit
def _scaled(z, temperature, UNIT: tl.constexpr):
    # Rounded like torch's division (the plain operator is not), which costs more than all sums.
    z = z.to(tl.float32)
    if not UNIT:
        z = tl.math.div_rn(z, temperature)
    return z


@triton.jit
def _floored(x):
    return tl.maximum(x, _FLOOR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _fold_kernel(
    logits, ids, state, temperature, first, columns, row_stride, state_stride,
    FRESH: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold the columns [first, first + columns) of one row into its state.

    state (7, N): peak, S0, S1, T0, T1, T2 and the sampled token's logit.
    """
    row = tl.program_id(0).to(tl.int64)
    own = state + row
    if FRESH:
        peak = _LOWEST + 0.0
        s0 = 0.0
        s1 = 0.0
        t0 = 0.0
        t1 = 0.0
        t2 = 0.0
    else:
        peak = tl.load(own)
        s0 = tl.load(own + state_stride)
        s1 = tl.load(own + 2 * state_stride)
        t0 = tl.load(own + 3 * state_stride)
        t1 = tl.load(own + 4 * state_stride)
        t2 = tl.load(own + 5 * state_stride)
    lane = tl.arange(0, BLOCK)
    for start in range(0, columns, BLOCK):
        inside = start + lane < columns
        z = tl.load(logits + row * row_stride + start + lane, mask=inside, other=float("-inf"))
        z = _scaled(z, temperature, UNIT)
        top = tl.maximum(tl.maximum(peak, tl.max(z, 0)), _LOWEST)
        # The sums so far, relative to the new maximum: see Moments.merge.
        d = tl.maximum(peak - top, _FLOOR)
        r = tl.exp(d)
        rr = r * r
        t2 = rr * (t2 + 2 * d * t1 + d * d * t0)
        t1 = rr * (t1 + d * t0)
        t0 = rr * t0
        s1 = r * (s1 + d * s0)
        s0 = r * s0
        peak = top
        x = _floored(z - top)
        e = tl.exp(x)
        ex = e * x
        s0 += tl.sum(e, 0)
        s1 += tl.sum(ex, 0)
        t0 += tl.sum(e * e, 0)
        t1 += tl.sum(e * ex, 0)
        t2 += tl.sum(ex * ex, 0)
    tl.store(own, peak)
    tl.store(own + state_stride, s0)
    tl.store(own + 2 * state_stride, s1)
    tl.store(own + 3 * state_stride, t0)
    tl.store(own + 4 * state_stride, t1)
    tl.store(own + 5 * state_stride, t2)
    column = tl.load(ids + row) - first
    if (column >= 0) & (column < columns):
        z_a = tl.load(logits + row * row_stride + column)
        tl.store(own + 6 * state_stride, _scaled(z_a, temperature, UNIT))


@triton.jit
def _grad_kernel(
    logits, ids, known, out, temperature, columns, row_stride, out_stride, known_stride,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dL/dlogits of one block of one row, as in slopes._Pull.logit_grad.

    known (5, N): g_logp, g_H, g_logp + g_H H, peak, log S0.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < columns
    g_logp = tl.load(known + row)
    g_entropy = tl.load(known + known_stride + row)
    offset = tl.load(known + 2 * known_stride + row)
    peak = tl.load(known + 3 * known_stride + row)
    log_sum = tl.load(known + 4 * known_stride + row)
    z = tl.load(logits + row * row_stride + lane, mask=inside, other=float("-inf"))
    log_pi = _floored(_scaled(z, temperature, UNIT) - peak) - log_sum
    dz = -tl.exp(log_pi) * (log_pi * g_entropy + offset)
    dz += tl.where(lane == tl.load(ids + row), g_logp, 0.0)
    tl.store(out + row * out_stride + lane, _scaled(dz, temperature, UNIT), mask=inside)


def row_moments(
    logits: Float[Tensor, "N V"], token_id: Int[Tensor, " N"], temperature: float = 1.0
) -> tuple[Moments, Float[Tensor, " N"]]:
    """Moments of logits / temperature and the sampled tokens' logits, read once; all (N,) float32.

    logits (N, V) of any float dtype but float64, with unit stride along V; token_id (N,) int64.
    """
    state = _launch(None, logits, token_id, 0, temperature)
    return Moments(*state[:6]), state[6]


def fold(
    state: Float[Tensor, "7 N"] | None,
    z: Float[Tensor, "N v"],
    token_id: Int[Tensor, " N"],
    first: int,
    temperature: float = 1.0,
) -> Float[Tensor, "7 N"]:
    """The state of a vocabulary walked tile by tile, with the columns from `first` on added.

    z (N, v): logits of one matmul tile, not yet divided by the temperature. The state, None at
    first and changed in place later, holds peak, s0, s1, t0, t1, t2 and the sampled token's
    logit over the temperature.
    """
    return _launch(state, z, token_id, first, temperature)


def logit_grad(
    logits: Float[Tensor, "N V"],
    token_id: Int[Tensor, " N"],
    known: Float[Tensor, "5 N"],
    temperature: float,
    out: Float[Tensor, "N V"],
) -> None:
    """Write dL/dlogits into `out`; known: g_logp, g_H, g_logp + g_H H, peak, log S0 of each row."""
    n, columns = logits.shape
    if n == 0:
        return
    with torch.cuda.device_of(logits):
        _grad_kernel[(n, triton.cdiv(columns, _BLOCK))](
            logits, token_id, known, out, float(temperature), columns, logits.stride(0),
            out.stride(0), known.stride(0), **_variant(temperature),
        )  # fmt: skip


def _variant(temperature: float) -> dict[str, Any]:
    return {"UNIT": temperature == 1.0, **_LAUNCH}


def _launch(state: Tensor | None, z: Tensor, ids: Tensor, first: int, temperature: float) -> Tensor:
    n, columns = z.shape
    variant = {"FRESH": state is None, **_variant(temperature)}
    if state is None:
        state = torch.empty(7, n, dtype=torch.float32, device=z.device)
    if n == 0:
        return state
    with torch.cuda.device_of(z):
        _fold_kernel[(n,)](
            z, ids, state, float(temperature), first, columns, z.stride(0), state.stride(0),
            **variant,
        )  # fmt: skip
    return state
