"""Token statistics in plain torch, tiled over tokens and vocabulary, with their derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entropy_lab.stats.backend import _kernels
from entropy_lab.stats.moments import Moments, _columns, accumulation
from entropy_lab.stats.slopes import _logit_push, _Pull, _refuse_tangent, _Rows
from entropy_lab.types import TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# torch sums one row of more columns in several threads, in another order than it sums many rows.
_MAX_VOCAB_TILE = 32768
# A strided input up to this many elements is cheaper to copy than to walk view by view.
_COPY_LIMIT = 1 << 22


def token_stats(
    logits: Float[Tensor, "*batch V"],
    token_id: Int[Tensor, "*batch"],
    temperature: float = 1.0,
    *,
    token_tile: int = 64,
    vocab_tile: int = 2048,
) -> TokenStats:
    """logp, entropy, m0, m1, m2 of softmax(logits / temperature) at each position.

    logp = log pi(token_id), entropy = -sum pi log pi, m_k = sum pi^2 (log pi)^k, in nats.
    logits (..., V) float, token_id (...) int; returns TokenStats of shape (...), float64 for
    float64 logits and float32 for every other dtype. logp and entropy carry gradients (in the
    logits' dtype) and forward-mode tangents, the moments neither. A row's result does not depend
    on the other rows, nor on whether gradients are enabled. -inf logits are allowed; a row of
    nothing else gives NaN.
    token_tile, vocab_tile: rows and columns worked on at a time; the Triton kernels that serve
    CUDA tensors need neither.
    Raises ValueError on shapes that do not fit, a temperature that is not positive and finite,
    or a token id outside [0, V); TypeError on logits that are not floating point or ids that are
    not integers.
    """
    _check(logits, token_id)
    vocab = logits.shape[-1]
    _check_choice(token_id, vocab, temperature, token_tile, vocab_tile)
    vocab_tile = min(vocab_tile, _MAX_VOCAB_TILE)
    # Narrow vocabularies get taller tiles of the same area; only V decides, never the batch.
    rows = max(token_tile, token_tile * vocab_tile // vocab)
    out = _TokenStats.apply(logits, token_id, float(temperature), rows, vocab_tile)
    logp, entropy, m0, m1, m2 = out[:5]  # type: ignore[index]
    return TokenStats(logp=logp, entropy=entropy, m0=m0, m1=m1, m2=m2)


def _check(logits: Tensor, token_id: Tensor) -> None:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}: pass logits.float()")
    if logits.ndim == 0 or logits.shape[-1] == 0 or logits.shape[:-1] != token_id.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} but token_id has {tuple(token_id.shape)}: "
            "logits must be token_id's shape with a vocabulary axis of at least 1 appended"
        )


def _check_choice(
    token_id: Tensor, vocab: int, temperature: float, token_tile: int, vocab_tile: int
) -> None:
    if token_id.is_floating_point() or token_id.dtype == torch.bool:
        raise TypeError(f"token_id must be integers, got {token_id.dtype}: pass token_id.long()")
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
        if low < 0 or high >= vocab:
            raise ValueError(
                f"token_id spans [{low}, {high}] but the vocabulary is [0, {vocab}): "
                "give padding a valid id such as 0 and leave it out with the mask"
            )


class _TokenStats(torch.autograd.Function):
    """Outputs logp, entropy, m0, m1, m2, row maximum, log S0; the first two have derivatives."""

    @staticmethod
    def forward(
        logits: Tensor, token_id: Tensor, temperature: float, rows: int, vocab_tile: int
    ) -> tuple[Tensor, ...]:
        ids = token_id.reshape(-1, 1).long()
        kernels, z = _kernels(logits), logits.detach()
        if kernels is None:
            parts = [
                _tile_stats(tile, ids[start : start + len(tile)], temperature, rows, vocab_tile)
                for start, tile in _tiles(z, rows)
            ]
        else:
            parts = [
                _columns(*kernels.row_moments(view, ids[start : start + len(view), 0], temperature))
                for start, view in _tiles(z, max(1, len(ids)))
            ]
        if not parts:
            parts = [logits.new_empty(7, 0, dtype=accumulation(logits.dtype))]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        # Forward mode refuses outputs that are views of one tensor.
        return tuple(column.reshape(token_id.shape).clone() for column in out.unbind(0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, token_id, ctx.temperature, ctx.rows, ctx.vocab_tile = inputs
        _, entropy, m0, m1, m2, peak, log_sum = output
        ctx.mark_non_differentiable(m0, m1, m2, peak, log_sum)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, token_id, entropy, peak, log_sum)
        ctx.save_for_forward(logits, token_id, entropy, peak, log_sum)

    @staticmethod
    @torch.no_grad()
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        logits, token_id, entropy, peak, log_sum = ctx.saved_tensors
        if tangent is None:
            return None, None, None, None, None, None, None
        rows = _Rows.of(token_id, entropy, peak, log_sum)
        parts = []
        # torch lays a tangent out like its tensor, so the two have the same tiles.
        for (start, tile), (_start, moved) in zip(
            _tiles(logits, ctx.rows), _tiles(tangent, ctx.rows), strict=True
        ):
            part = rows[start : start + tile.shape[0]]
            parts.append(_tile_tangent(tile, moved, part, ctx.temperature, ctx.vocab_tile))
        if not parts:
            parts = [entropy.new_empty(2, 0)]
        d_logp, d_entropy = torch.cat(parts, dim=1).unbind(0)
        shape = entropy.shape
        return d_logp.reshape(shape), d_entropy.reshape(shape), None, None, None, None, None

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        logits, token_id, entropy, peak, log_sum = ctx.saved_tensors
        _refuse_tangent(logits)
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None, None
        rows = _Rows.of(token_id, entropy, peak, log_sum)
        pull = _Pull.of(rows, grad_logp, grad_entropy)
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        flat = grad.view(-1, logits.shape[-1])
        kernels = _kernels(logits)
        for start, tile in _tiles(logits, ctx.rows if kernels is None else max(1, len(flat))):
            part, out = pull[start : start + len(tile)], flat[start : start + len(tile)]
            if kernels is None:
                _tile_grad(tile, part, ctx.temperature, ctx.vocab_tile, out)
            else:
                ids = part.rows.token_id.squeeze(1)
                kernels.logit_grad(tile, ids, part.known(), ctx.temperature, out)
        padding = pull.unused_nan()
        if bool(padding.any()):
            flat.masked_fill_(padding, 0.0)
        return grad, None, None, None, None


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
    z = tile.to(accumulation(tile.dtype))
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
    total: Moments | None = None
    for first in range(0, tile.shape[1], vocab_tile):
        z = _scaled(tile[:, first : first + vocab_tile], temperature)
        part = Moments.of(z, total.peak if total else None)
        total = total.merge(part) if total else part
    assert total is not None
    z_a = _scaled(tile.gather(1, ids), temperature).squeeze(1)
    return _columns(total, z_a)[:, :count]


def _tile_grad(tile: Tensor, pull: _Pull, temperature: float, vocab_tile: int, out: Tensor) -> None:
    """Write dL/dlogits of the rows of `tile` into `out` (n, V)."""
    for first in range(0, tile.shape[1], vocab_tile):
        z = _scaled(tile[:, first : first + vocab_tile], temperature)
        dz = pull.logit_grad(z, first)
        if temperature != 1.0:
            dz.div_(temperature)
        out[:, first : first + vocab_tile].copy_(dz)


def _tile_tangent(
    tile: Tensor, moved: Tensor, rows: _Rows, temperature: float, vocab_tile: int
) -> Tensor:
    """(2, n): dlogp = dz_a - sum pi dz and dH = -sum pi (log pi + H) dz of `moved` (n, V)."""
    d_logp = _scaled(moved.gather(1, rows.token_id), temperature).squeeze(1)
    d_entropy = torch.zeros_like(d_logp)
    for first in range(0, tile.shape[1], vocab_tile):
        z = _scaled(tile[:, first : first + vocab_tile], temperature)
        dz = _scaled(moved[:, first : first + vocab_tile], temperature)
        mean, slope = _logit_push(rows, z, dz)
        d_logp, d_entropy = d_logp - mean, d_entropy - slope
    return torch.stack([d_logp, d_entropy])
