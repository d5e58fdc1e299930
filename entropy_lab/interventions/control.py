"""What controllers read of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def valid_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float:
    """Mean of `values` (B, T) over the tokens with mask, in float64; NaN where there is none."""
    return float(values[mask].double().mean())


def valid_std(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float:
    """Population deviation sqrt(mean (x - mean x)^2) likewise; NaN where there is no token."""
    valid = values[mask].double()
    return float((valid - valid.mean()).square().mean().sqrt())
