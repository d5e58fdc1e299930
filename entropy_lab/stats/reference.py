"""Token statistics in plain torch, tiled over tokens and vocabulary, with their gradient.

Everything is taken relative to the row's maximum m: with x = z - m and e = exp(x), five sums
S0 = sum e, S1 = sum e x, T0 = sum e^2, T1 = sum e^2 x, T2 = sum e^2 x^2 give the statistics, with
entropy = log S0 - S1/S0, two non-negative terms. The usual lse - sum p z subtracts two large
numbers and loses three digits. (sum e x^2 enters none of the five, so it is not kept.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entropy_lab.types import TokenStats

# torch sums one row of more columns in several threads, in another order than it sums many rows.
_MAX_VOCAB_TILE = 32768
# A strided input up to this many elements is cheaper to copy than to walk view by view.
_COPY_LIMIT = 1 << 22
# exp is exactly 0 below these, so raising -inf to them changes no sum and avoids 0 * inf.
_FLOOR = {torch.float32: -110.0, torch.float64: -760.0}


def token_stats(
    logits: Tensor,
    token_id: Tensor,
    temperature: float = 1.0,
    *,
    token_tile: int = 256,
    vocab_tile: int = 2048,
) -> TokenStats:
    """logp, entropy, m0, m1, m2 of softmax(logits / temperature) at each position.

    logp = log pi(token_id), entropy = -sum pi log pi, m_k = sum pi^2 (log pi)^k, in nats.
    logits (..., V) float, token_id (...) int; returns TokenStats of shape (...), float64 for
    float64 logits and float32 for every other dtype. logp and entropy carry gradients (in the
    logits' dtype), the moments do not. A row's result does not depend on the other rows, nor on
    whether gradients are enabled. -inf logits are allowed; a row of nothing else gives NaN.
    token_tile, vocab_tile: rows and columns worked on at a time.
    Raises ValueError on shapes that do not fit, a temperature that is not positive and finite,
    or a token id outside [0, V); TypeError on logits that are not floating point or ids that are
    not integers.
    """
    _check(logits, token_id, temperature, token_tile, vocab_tile)
    vocab_tile = min(vocab_tile, _MAX_VOCAB_TILE)
    vocab = logits.shape[-1]
    # Narrow vocabularies get taller tiles of the same area; only V decides, never the batch.
    rows = max(token_tile, token_tile * vocab_tile // vocab)
    out = _TokenStats.apply(logits, token_id, float(temperature), rows, vocab_tile)
    logp, entropy, m0, m1, m2 = out[:5]  # type: ignore[index]
    return TokenStats(logp=logp, entropy=entropy, m0=m0, m1=m1, m2=m2)


def _check(
    logits: Tensor, token_id: Tensor, temperature: float, token_tile: int, vocab_tile: int
) -> None:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}: pass logits.float()")
    if token_id.is_floating_point() or token_id.dtype == torch.bool:
        raise TypeError(f"token_id must be integers, got {token_id.dtype}: pass token_id.long()")
    if logits.ndim == 0 or logits.shape[-1] == 0 or logits.shape[:-1] != token_id.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} but token_id has {tuple(token_id.shape)}: "
            "logits must be token_id's shape with a vocabulary axis of at least 1 appended"
        )
    if not 0.0 < temperature < float("inf"):
        raise ValueError(
            f"temperature is {temperature}: pass the sampling temperature, positive and finite "
            "(greedy decoding has no entropy to measure)"
        )
    if token_tile < 1 or vocab_tile < 1:
        raise ValueError(
            f"token_tile is {token_tile} and vocab_tile is {vocab_tile}: both must be at least 1"
        )
    if token_id.numel():
        low, high = (int(v) for v in torch.aminmax(token_id))
        if low < 0 or high >= logits.shape[-1]:
            raise ValueError(
                f"token_id spans [{low}, {high}] but the vocabulary is [0, {logits.shape[-1]}): "
                "give padding a valid id such as 0 and leave it out with the mask"
            )


class _TokenStats(torch.autograd.Function):
    """Outputs logp, entropy, m0, m1, m2, row maximum, log S0; gradients for the first two."""

    @staticmethod
    def forward(
        logits: Tensor, token_id: Tensor, temperature: float, rows: int, vocab_tile: int
    ) -> tuple[Tensor, ...]:
        ids = token_id.reshape(-1, 1).long()
        parts = [
            _tile_stats(tile, ids[start : start + tile.shape[0]], temperature, rows, vocab_tile)
            for start, tile in _tiles(logits.detach(), rows)
        ]
        if not parts:
            parts = [logits.new_empty(7, 0, dtype=_accumulate(logits.dtype))]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return tuple(column.reshape(token_id.shape) for column in out.unbind(0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, token_id, ctx.temperature, ctx.rows, ctx.vocab_tile = inputs
        _, entropy, m0, m1, m2, peak, log_sum = output
        ctx.mark_non_differentiable(m0, m1, m2, peak, log_sum)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, token_id, entropy, peak, log_sum)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        logits, token_id, entropy, peak, log_sum = ctx.saved_tensors
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None, None
        zero = torch.zeros_like(entropy)
        g_logp = (zero if grad_logp is None else grad_logp).reshape(-1, 1)
        g_entropy = (zero if grad_entropy is None else grad_entropy).reshape(-1, 1)
        # An unused row (padding) may hold NaN; its gradient is 0, not 0 * NaN.
        unused = (g_logp == 0) & (g_entropy == 0)
        offset = g_logp + (g_entropy * entropy.reshape(-1, 1)).masked_fill(g_entropy == 0, 0.0)
        columns = [token_id.reshape(-1, 1).long(), g_logp, g_entropy, offset]
        columns += [peak.reshape(-1, 1), log_sum.reshape(-1, 1)]
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        flat = grad.view(-1, logits.shape[-1])
        for start, tile in _tiles(logits, ctx.rows):
            stop = start + tile.shape[0]
            part = [column[start:stop] for column in columns]
            _tile_grad(tile, part, ctx.temperature, ctx.vocab_tile, flat[start:stop])
        if bool((unused & ~torch.isfinite(log_sum.reshape(-1, 1))).any()):
            flat.masked_fill_(unused, 0.0)
        return grad, None, None, None, None


def _accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tiles(logits: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, view of at most `rows` rows) over the flattened positions, in order."""
    start = 0
    for view in _row_views(logits):
        for first in range(0, view.shape[0], rows):
            tile = view[first : first + rows]
            yield start, tile
            start += tile.shape[0]


def _row_views(logits: Tensor) -> list[Tensor]:
    """2-D views (n, V) that cover `logits` in order, without copying a large strided input."""
    if logits.stride(-1) != 1 or logits.numel() <= _COPY_LIMIT:
        logits = logits.contiguous()
    if logits.ndim <= 2 or logits.is_contiguous():
        return [logits.reshape(-1, logits.shape[-1])]
    return [view for part in logits.unbind(0) for view in _row_views(part)]


def _scaled(tile: Tensor, temperature: float) -> Tensor:
    z = tile.to(_accumulate(tile.dtype))
    return z if temperature == 1.0 else z / temperature


def _tile_stats(
    tile: Tensor, ids: Tensor, temperature: float, rows: int, vocab_tile: int
) -> Tensor:
    """(7, n): logp, entropy, m0, m1, m2, row maximum, log S0 of the rows of `tile` (n, V)."""
    count = tile.shape[0]
    if tile.device.type != "cpu" and count < rows:
        # Elsewhere the order of a sum depends on the number of rows: always work on `rows`.
        tile = torch.nn.functional.pad(tile, (0, 0, 0, rows - count))
        ids = torch.nn.functional.pad(ids, (0, 0, 0, rows - count))
    peak, sums = None, None
    for first in range(0, tile.shape[1], vocab_tile):
        z = _scaled(tile[:, first : first + vocab_tile], temperature)
        # Finite, so that -inf columns stay -inf after the subtraction instead of NaN.
        top = z.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(z.dtype).min)
        if peak is not None and sums is not None:
            top = torch.maximum(peak, top)
            sums = _shifted(sums, (peak - top).squeeze(1))
        new = _sums(z - top)
        peak, sums = top, new if sums is None else [a + b for a, b in zip(sums, new, strict=True)]
    assert peak is not None and sums is not None
    z_a = _scaled(tile.gather(1, ids), temperature).squeeze(1)
    out = _from_sums(z_a, peak.squeeze(1), sums)
    return out[:, :count]


def _sums(x: Tensor) -> list[Tensor]:
    """S0, S1, T0, T1, T2 of x (n, v) <= 0, which is overwritten."""
    x.clamp_(min=_FLOOR[x.dtype])
    e = x.exp()
    ex = e * x
    s0, s1 = e.sum(1), ex.sum(1)
    t0 = torch.mul(e, e, out=x).sum(1)
    t1 = e.mul_(ex).sum(1)
    t2 = ex.mul_(ex).sum(1)
    return [s0, s1, t0, t1, t2]


def _shifted(sums: list[Tensor], d: Tensor) -> list[Tensor]:
    """The sums relative to a maximum that is larger by -d; d (n,) <= 0."""
    s0, s1, t0, t1, t2 = sums
    d = d.clamp(min=_FLOOR[d.dtype])
    r = d.exp()
    rr, dd = r * r, d * d
    return [
        r * s0,
        r * (s1 + d * s0),
        rr * t0,
        rr * (t1 + d * t0),
        rr * (t2 + 2 * d * t1 + dd * t0),
    ]


def _from_sums(z_a: Tensor, peak: Tensor, sums: list[Tensor]) -> Tensor:
    s0, s1, t0, t1, t2 = sums
    log_sum = s0.log()
    square = s0 * s0
    logp = (z_a - peak) - log_sum
    entropy = log_sum - s1 / s0
    m0 = t0 / square
    m1 = (t1 - log_sum * t0) / square
    m2 = (t2 - 2 * log_sum * t1 + log_sum * log_sum * t0) / square
    return torch.stack([logp, entropy, m0, m1, m2, peak, log_sum])


def _tile_grad(
    tile: Tensor, columns: list[Tensor], temperature: float, vocab_tile: int, out: Tensor
) -> None:
    """Write dL/dz_v = g_logp (1[v = a] - pi_v) - g_H pi_v (log pi_v + H) into `out` (n, V)."""
    ids, g_logp, g_entropy, offset, peak, log_sum = columns
    for first in range(0, tile.shape[1], vocab_tile):
        z = _scaled(tile[:, first : first + vocab_tile], temperature)
        log_pi = (z - peak).clamp_(min=_FLOOR[z.dtype]).sub_(log_sum)
        dz = log_pi.exp().neg_()
        dz.mul_(log_pi.mul_(g_entropy).add_(offset))  # offset = g_logp + g_H * H
        inside = (ids >= first) & (ids < first + dz.shape[1])
        column = (ids - first).clamp_(0, dz.shape[1] - 1)
        dz.scatter_add_(1, column, g_logp.masked_fill(~inside, 0.0).to(dz.dtype))
        if temperature != 1.0:
            dz.div_(temperature)
        out[:, first : first + vocab_tile].copy_(dz)
