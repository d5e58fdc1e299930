"""Quantile advantage estimation (2509.22611)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from entropy_lab.advantages import quantile_relative
from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.types import TokenBatch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Qae(ClipHigher):
    """Clip-Higher on A = (R - Q_K) / (std + 1e-6), Q_K the group's K-quantile of the rewards.

    With 0/1 rewards hard groups then train on their successes alone and easy ones on their
    failures. Q_K = inf{x: F(x) >= K}; interpolate=True is the released code's torch.quantile.
    arXiv 2509.22611. Raises ConfigError for a k outside (0, 1).
    """

    name: ClassVar[str] = "qae"
    source: ClassVar[str] = "arXiv 2509.22611"

    k: float = 0.4
    interpolate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("k", 0 < self.k < 1, "a number in (0, 1), e.g. 0.4")

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """(R - Q_K) / (std + 1e-6) within the group; (B, T), 0 outside the mask.

        Raises ValueError where batch.reward or batch.group is None, and on a group of one response.
        """
        reward, group = self._read(batch, "reward", "group")
        return self._per_token(batch, quantile_relative(reward, group, self.k, self.interpolate))
