"""STEER: smaller weights for tokens that are predicted to change entropy more (2510.10150)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from entropy_lab.interventions.base import Scope
from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.predictors.steer import steer_omega
from entropy_lab.predictors.steer_released import steer_released_omega
from entropy_lab.stats.quantile import quantile
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class Mapped(ClipHigher):
    """Reweight tokens by x = |Omega| (symmetric) or x = -Omega (asymmetric, Omega has dH's sign).

    exp: exp(-k x) within [lambda_min, lambda_max], k = -ln(lambda_min) / max|Omega|;
    linear: lambda_max at the smallest x down to lambda_min at the largest, their midpoint where
    all x are equal; binary: lambda_min above the `quantile` of x, lambda_max elsewhere (known from
    third-party text only, so quantile has no default). The clip is Clip-Higher's. Weights are 0
    outside the mask. arXiv 2510.10150. Raises ConfigError for values outside their range.
    """

    smallest_max: ClassVar[float] = 0.0  # k does not grow below this max|Omega|

    mapping: Literal["exp", "linear", "binary"] = "exp"
    symmetric: bool = True
    lambda_min: float = 0.7
    lambda_max: float = 1.0
    quantile: float | None = None
    scope: Scope = "minibatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("lambda_min", 0 < self.lambda_min <= 1, "a weight in (0, 1], e.g. 0.7")
        self._check(
            "lambda_max",
            self.lambda_min <= self.lambda_max < math.inf,
            f"a finite weight >= lambda_min = {self.lambda_min!r}, e.g. 1.0",
        )
        self._check(
            "lambda_max",
            self.lambda_max == 1 or self.mapping != "exp" or not self.symmetric,
            "1.0, the largest value of the symmetric exponential, or mapping 'linear'",
        )
        binary = self.mapping == "binary"
        self._check(
            "quantile",
            0 < (self.quantile or 0) < 1 if binary else self.quantile is None,
            "a number in (0, 1) with mapping 'binary', and leave it out otherwise",
        )

    def _omega(self, batch: TokenBatch, stats: TokenStats | None) -> Float[Tensor, "B T"]:
        """Omega, the entropy change that each token is taken to cause, (B, T)."""
        raise NotImplementedError

    def plan(self, batch: TokenBatch, stats: TokenStats | None, state: Any = None) -> TokenPlan:
        """Clip-Higher's plan with a weight per token; ValueError where Omega's input is lacking."""
        omega = self._omega(batch, stats)
        valid = omega[batch.mask]  # (N,)
        weight = torch.zeros_like(omega)
        scalars: dict[str, float] = {}
        if valid.numel():
            kept = self._weights(valid)
            weight[batch.mask] = kept
            scalars = {
                "weight_mean": float(kept.mean()),
                "weight_min": float(kept.min()),
                "weight_max": float(kept.max()),
                "max_abs_omega": float(valid.abs().max()),
            }
        return self._plan(weight=weight, omega=omega, scalars=scalars)

    def _weights(self, omega: Tensor) -> Tensor:
        """The weights (N,) of N >= 1 valid tokens."""
        x = omega.abs() if self.symmetric else -omega
        if self.mapping == "exp":
            largest = omega.abs().max().clamp(min=self.smallest_max)
            if largest == 0:
                return torch.ones_like(x)
            k = -math.log(self.lambda_min) / largest
            return torch.exp(-k * x).clamp(self.lambda_min, self.lambda_max)
        if self.mapping == "binary":
            above = x > quantile(x, self.quantile or 0, interpolate=False)
            return torch.full_like(x, self.lambda_max).masked_fill(above, self.lambda_min)
        lowest, highest = x.min(), x.max()
        if highest == lowest:
            return torch.full_like(x, (self.lambda_min + self.lambda_max) / 2)
        slope = (self.lambda_max - self.lambda_min) / (highest - lowest)
        return (self.lambda_max - (x - lowest) * slope).clamp(self.lambda_min, self.lambda_max)


@dataclass(frozen=True, kw_only=True)
class Steer(Mapped):
    """STEER: Omega is the entropy change that a closed form predicts for the token.

    omega: `steer` (the paper's theorem) or `steer_released` (the authors' code, with scope
    microbatch, lambda 0.8/1.0 for exp and 0.8/1.2 for linear); lambda_min 0.7 is the paper's v4.
    Below max|Omega| = 0.02 the exponential stops stretching noise over the whole range. The
    mapping's fields are those of Mapped. arXiv 2510.10150.
    """

    name: ClassVar[str] = "steer"
    source: ClassVar[str] = "arXiv 2510.10150"
    unconfirmed: ClassVar[str] = (
        "lambda_min (the paper's v4) and the binary mapping (third-party text)"
    )
    smallest_max: ClassVar[float] = 0.02

    omega: Literal["steer", "steer_released"] = "steer"

    @property
    def needs(self) -> frozenset[str]:
        released = self.omega == "steer_released"
        return frozenset({"logp", "old_entropy" if released else "entropy"})

    def _omega(self, batch: TokenBatch, stats: TokenStats | None) -> Float[Tensor, "B T"]:
        """Omega of the closed form (B, T); ValueError where old_entropy is lacking."""
        known = self._stats(stats)
        if self.omega == "steer":
            return steer_omega(batch, known, self._beyond(batch, known))
        return steer_released_omega(batch, known)
