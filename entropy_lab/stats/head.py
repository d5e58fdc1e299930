"""Loops over 2-D tiles of the logits hidden @ weight.T that never hold more than one tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from entropy_lab.stats.moments import CHUNK, Moments, _columns, accumulation
from entropy_lab.stats.slopes import _logit_push, _Pull, _Rows


@dataclass(frozen=True)
class _Tiling:
    """rows x columns of logits at a time; temperature divides them."""

    temperature: float
    rows: int
    columns: int
    compile: bool

    def over_rows(self, count: int) -> Iterator[slice]:
        return (slice(i, min(i + self.rows, count)) for i in range(0, count, self.rows))

    def over_columns(self, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first column, weight rows (v, D) of one vocabulary tile, ready for `_product`)."""
        for first in range(0, weight.shape[0], self.columns):
            yield first, _ready(weight[first : first + self.columns])

    def padded(self, tile: Tensor) -> Tensor:
        """A full tile: the order of a matmul's or a sum's terms depends on the number of rows."""
        missing = self.rows - tile.shape[0]
        return pad(tile, (0, 0) * (tile.ndim - 1) + (0, missing)) if missing else tile

    def buffer(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Room for one tile of logits: a fresh one at every tile costs more than its sums."""
        size = self.rows * min(self.columns, len(weight))
        return hidden.new_empty(size, dtype=_wide(hidden, weight))

    def logits(self, hidden: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
        """(rows, v) logits over the temperature of a full tile of hidden states, in `buffer`."""
        z = self.product(hidden, weight, buffer)
        return z if self.temperature == 1.0 else z.div_(self.temperature)

    def product(self, hidden: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
        out = buffer[: len(hidden) * len(weight)].view(len(hidden), len(weight))
        return _product(hidden, weight.t(), out)


def _ready(x: Tensor) -> Tensor:
    # Processors without bf16 arithmetic emulate it; upcasting a tile first is far cheaper.
    return x if x.device.type == "cuda" else x.to(accumulation(x.dtype))


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b, accumulated and returned in float32 (float64 where one of them is)."""
    wide = _wide(a, b)
    if a.device.type == "cuda" and a.dtype == b.dtype != wide:
        return torch.mm(a, b, out_dtype=wide, out=out)
    return torch.mm(a.to(wide), b.to(wide), out=out)


def _head_stats(
    hidden: Tensor, weight: Tensor, ids: Tensor, tiling: _Tiling, kernels: Any
) -> Tensor:
    """(7, N): logp, entropy, m0, m1, m2, row maximum, log S0 of hidden (N, D), weight (V, D)."""
    slices = list(tiling.over_rows(len(ids)))
    states: list[Any] = [None] * len(slices)
    buffer = tiling.buffer(hidden, weight)
    for first, head in tiling.over_columns(weight):
        for index, rows in enumerate(slices):
            h, token, state = tiling.padded(hidden[rows]), tiling.padded(ids[rows]), states[index]
            if kernels is None:
                z = tiling.logits(h, head, buffer)
                states[index] = _fold(state, z, token, first, tiling.compile)
            else:
                z = tiling.product(h, head, buffer)
                states[index] = kernels.fold(state, z, token, first, tiling.temperature)
    out = hidden.new_empty(7, len(ids), dtype=_wide(hidden, weight))
    for rows, state in zip(slices, states, strict=True):
        total, z_a = state if kernels is None else (Moments(*state[:6]), state[6])
        out[:, rows] = _columns(total, z_a)[:, : rows.stop - rows.start]
    return out


def _fold(
    state: tuple[Moments, Tensor] | None, z: Tensor, ids: Tensor, first: int, compile: bool
) -> tuple[Moments, Tensor]:
    """The moments and sampled logits of the tiles so far, with those of z (n, v) added."""
    part = Moments.of(z, state[0].peak if state else None, compile=compile)
    column = ids - first
    inside = (column >= 0) & (column < z.shape[1])
    found = z.gather(1, column.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
    if state is None:
        return part, found
    return state[0].merge(part), torch.where(inside, found, state[1])


def _wide(*tensors: Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return accumulation(dtype)


def _head_grads(
    hidden: Tensor, weight: Tensor, pull: _Pull, tiling: _Tiling, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dL/dhidden (N, D) and dL/dweight (V, D), each summed in float32 and rounded once."""
    padding = pull.unused_nan()
    if bool(padding.any()):
        # 0 * NaN would spread from padded rows into the gradient of the whole head.
        hidden = hidden.masked_fill(padding, 0.0)
        clean = {n: getattr(pull.rows, n).masked_fill(padding, 0.0) for n in _Rows.FLOATS}
        pull = replace(pull, rows=replace(pull.rows, **clean))
    wide = _wide(hidden, weight)
    d_hidden = hidden.new_zeros(hidden.shape, dtype=wide) if needs[0] else None
    d_weight = torch.empty_like(weight) if needs[1] else None
    buffer = tiling.buffer(hidden, weight)
    for first, head in tiling.over_columns(weight):
        total = head.new_zeros(head.shape, dtype=wide) if needs[1] else None
        for rows in tiling.over_rows(len(hidden)):
            h = tiling.padded(hidden[rows])
            z = tiling.logits(h, head, buffer)
            dz = _logit_grad(pull[rows].map(tiling.padded), z, first)
            if tiling.temperature != 1.0:
                dz.div_(tiling.temperature)
            # On a GPU the products run in the head's dtype, as in a plain backward.
            dz = dz.to(head.dtype) if dz.device.type == "cuda" else dz
            if d_hidden is not None:
                d_hidden[rows] += _product(dz, head)[: rows.stop - rows.start]
            if total is not None:
                total += _product(dz.t(), h)
        if d_weight is not None and total is not None:
            d_weight[first : first + len(total)] = total
    return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight


def _logit_grad(pull: _Pull, z: Tensor, first: int) -> Tensor:
    """`pull.logit_grad` written over z, in chunks that stay in a CPU's cache."""
    rows = len(z) if z.device.type != "cpu" else max(1, CHUNK // z.shape[1])
    for start in range(0, len(z), rows):
        chunk = slice(start, start + rows)
        z[chunk] = pull[chunk].logit_grad(z[chunk], first)
    return z


def _head_tangents(
    hidden: tuple[Tensor, Tensor | None],
    weight: tuple[Tensor, Tensor | None],
    known: _Rows,
    tiling: _Tiling,
) -> Tensor:
    """(2, N): dlogp and dH, where hidden and weight each come with their direction."""
    (at_h, to_h), (at_w, to_w) = hidden, weight
    out = at_h.new_zeros(2, len(at_h), dtype=_wide(at_h, at_w))
    buffer = tiling.buffer(at_h, at_w)
    for first, head in tiling.over_columns(at_w):
        moved = None if to_w is None else _ready(to_w[first : first + tiling.columns])
        for rows in tiling.over_rows(len(at_h)):
            h, part = tiling.padded(at_h[rows]), known[rows].map(tiling.padded)
            dz = torch.zeros((), dtype=out.dtype, device=out.device)
            if to_h is not None:
                dz = dz + tiling.logits(tiling.padded(to_h[rows]), head, buffer)
            if moved is not None:
                dz = dz + tiling.logits(h, moved, buffer)
            z = tiling.logits(h, head, buffer)
            mean, slope = _logit_push(part, z, dz)
            out[:, rows] += torch.stack([part.pick(dz, first) - mean, -slope])[
                :, : rows.stop - rows.start
            ]
    return out
