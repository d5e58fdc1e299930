"""Dr. GRPO: neither a std nor a length to divide by (2503.20783)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from entropy_lab.advantages import group_relative
from entropy_lab.interventions.base import Clipped
from entropy_lab.types import Normaliser, TokenBatch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DrGrpo(Clipped):
    """A = R - mean R of the group, no std; token losses summed and divided by a constant length.

    constant_length is the longest response allowed, in tokens, and has no default. PPO's clip at
    0.2, no dual clip. arXiv 2503.20783. Raises ConfigError for another normaliser.
    """

    name: ClassVar[str] = "dr_grpo"
    source: ClassVar[str] = "arXiv 2503.20783"

    normaliser: Normaliser = "constant"
    constant_length: int = field()

    def __post_init__(self) -> None:
        ok = self.normaliser == "constant"
        self._check("normaliser", ok, "constant, or method rloo for other means without a std")
        super().__post_init__()

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """R minus the mean of its group; (B, T), 0 outside the mask.

        Raises ValueError where batch.reward or batch.group is None.
        """
        reward, group = self._read(batch, "reward", "group")
        return self._per_token(batch, group_relative(reward, group, std=False))
