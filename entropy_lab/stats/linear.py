"""Token statistics straight from hidden states and output head, without a logits tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entropy_lab.stats.backend import _kernels
from entropy_lab.stats.head import _head_grads, _head_stats, _head_tangents, _Tiling
from entropy_lab.stats.reference import _check_choice
from entropy_lab.stats.slopes import _Pull, _refuse_tangent, _Rows
from entropy_lab.types import TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_TILE = (256, 2048)
_TILE_CUDA = (1024, 8448)


def linear_token_stats(
    hidden: Float[Tensor, "*batch D"],
    weight: Float[Tensor, "V D"],
    token_id: Int[Tensor, "*batch"],
    temperature: float = 1.0,
    *,
    token_tile: int | None = None,
    vocab_tile: int | None = None,
    compile: bool = False,
) -> TokenStats:
    """`token_stats` of the logits hidden @ weight.T, which are never held as a whole.

    hidden (..., D) float, after the final norm; weight (V, D) float, the output head; token_id
    (...) int. Returns TokenStats of shape (...) in nats, in float32 (float64 where an input is):
    every product and sum is accumulated there, whatever the inputs' dtype. logp and entropy
    carry gradients and forward-mode tangents of hidden and weight; the backward computes the
    tiles again. A row's result does not depend on the other rows. Memory beyond inputs and
    outputs: a few tiles of token_tile x vocab_tile (256 x 2048; 1024 x 8448 on a CUDA device),
    and one vocab_tile x D of the head.
    compile: off a GPU, the sums of a tile through torch.compile (the last digits may differ).
    Raises ValueError on shapes that do not fit, a temperature that is not positive and finite,
    or a token id outside [0, V); TypeError on inputs that are not floating point or ids that are
    not integers.
    """
    _check_head(hidden, weight, token_id)
    rows, columns = _TILE_CUDA if hidden.device.type == "cuda" else _TILE
    rows = rows if token_tile is None else token_tile
    columns = columns if vocab_tile is None else vocab_tile
    _check_choice(token_id, weight.shape[0], temperature, rows, columns)
    tiling = _Tiling(float(temperature), rows, columns, compile)
    out = _LinearStats.apply(hidden, weight, token_id, tiling)
    return TokenStats(*out[:5])  # type: ignore[index]


def _check_head(hidden: Tensor, weight: Tensor, token_id: Tensor) -> None:
    for name, value in (("hidden", hidden), ("weight", weight)):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
    shapes = tuple(hidden.shape), tuple(weight.shape)
    if weight.ndim != 2 or 0 in weight.shape or hidden.ndim == 0:
        raise ValueError(f"hidden and weight have shapes {shapes}: they must be (..., D), (V, D)")
    if hidden.shape[-1] != weight.shape[1] or hidden.shape[:-1] != token_id.shape:
        raise ValueError(
            f"hidden, weight, token_id have shapes {(*shapes, tuple(token_id.shape))}: they must "
            "be (..., D), (V, D) and (...)"
        )


class _LinearStats(torch.autograd.Function):
    """Outputs logp, entropy, m0, m1, m2, row maximum, log S0; the first two have derivatives."""

    @staticmethod
    def forward(
        hidden: Tensor, weight: Tensor, token_id: Tensor, tiling: _Tiling
    ) -> tuple[Tensor, ...]:
        out = _head_stats(
            hidden.detach().reshape(-1, hidden.shape[-1]),
            weight.detach(),
            token_id.reshape(-1).long(),
            tiling,
            _kernels(hidden, weight),
        )
        # Forward mode refuses outputs that are views of one tensor.
        return tuple(column.reshape(token_id.shape).clone() for column in out.unbind(0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        hidden, weight, token_id, ctx.tiling = inputs
        _, entropy, m0, m1, m2, peak, log_sum = output
        ctx.mark_non_differentiable(m0, m1, m2, peak, log_sum)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, token_id, entropy, peak, log_sum)
        ctx.save_for_forward(hidden, weight, token_id, entropy, peak, log_sum)

    @staticmethod
    @torch.no_grad()
    def jvp(
        ctx: Any, to_hidden: Tensor | None, to_weight: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, token_id, entropy, peak, log_sum = ctx.saved_tensors
        if to_hidden is None and to_weight is None:
            return None, None, None, None, None, None, None
        width = hidden.shape[-1]
        moved = None if to_hidden is None else to_hidden.reshape(-1, width)
        rows = _Rows.of(token_id, entropy, peak, log_sum)
        out = _head_tangents(
            (hidden.reshape(-1, width), moved), (weight, to_weight), rows, ctx.tiling
        )
        d_logp, d_entropy = (column.reshape(entropy.shape).clone() for column in out.unbind(0))
        return d_logp, d_entropy, None, None, None, None, None

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, token_id, entropy, peak, log_sum = ctx.saved_tensors
        _refuse_tangent(hidden, weight)
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None
        pull = _Pull.of(_Rows.of(token_id, entropy, peak, log_sum), grad_logp, grad_entropy)
        flat = hidden.reshape(-1, hidden.shape[-1])
        d_hidden, d_weight = _head_grads(flat, weight, pull, ctx.tiling, ctx.needs_input_grad[:2])
        if d_hidden is not None:
            d_hidden = d_hidden.reshape(hidden.shape)
        return d_hidden, d_weight, None, None
