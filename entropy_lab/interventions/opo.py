"""On-policy RL with the optimal reward baseline (2505.23585)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from entropy_lab.advantages import length_weighted
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import TokenBatch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Opo(Grpo):
    """GRPO's loss on A = R - sum l R / sum l over the group, l the response lengths; no std.

    The source trains exactly on-policy: with one minibatch a rollout r is 1 and no clip acts; with
    more, GRPO's clips do. arXiv 2505.23585.
    """

    name: ClassVar[str] = "opo"
    source: ClassVar[str] = "arXiv 2505.23585"

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """R minus the length-weighted mean of its group; (B, T), 0 outside the mask.

        Raises ValueError where batch.reward or batch.group is None, and on a group without tokens.
        """
        reward, group = self._read(batch, "reward", "group")
        return self._per_token(batch, length_weighted(reward, group, batch.mask.sum(1)))
