"""A quantile of any number of values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def quantile(x: Float[Tensor, " N"], q: float, interpolate: bool = True) -> Float[Tensor, ""]:
    """The q-quantile of x: at place q (N - 1) between the sorted values, or inf{v: F(v) >= q}.

    x (N,) with N >= 1, q in [0, 1]. interpolate: the straight line between the two values around
    the place, as in torch.quantile, which refuses more than 2^24 values; without it the smallest
    value that at least a share q of them does not exceed. In the unit of x; the order of x does
    not matter. Raises ValueError on an empty x or a q outside [0, 1].
    """
    if not x.numel() or not 0 <= q <= 1:
        raise ValueError(
            f"quantile got {x.numel()} values and q = {q}: pass at least one value and a q in "
            "[0, 1]"
        )
    # Rounded, so that 0.8 * 15 is 12 whatever the last bit says.
    if not interpolate:
        return x.kthvalue(max(1, math.ceil(round(q * x.numel(), 9)))).values
    place = round(q * (x.numel() - 1), 9)
    below, above = (x.kthvalue(1 + int(f(place))).values for f in (math.floor, math.ceil))
    return torch.lerp(below, above, place - math.floor(place))
