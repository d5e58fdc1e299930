"""REINFORCE with the leave-one-out baseline (2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from entropy_lab.advantages import leave_one_out
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.types import TokenBatch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rloo(Grpo):
    """GRPO's loss on A = R - the mean of the other rewards of the group, no std, as in verl.

    arXiv 2402.14740.
    """

    name: ClassVar[str] = "rloo"
    source: ClassVar[str] = "arXiv 2402.14740; verl"

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """R minus the mean of the others in its group; (B, T), 0 outside the mask.

        Raises ValueError where batch.reward or batch.group is None, and on a group of one response.
        """
        reward, group = self._read(batch, "reward", "group")
        return self._per_token(batch, leave_one_out(reward, group))
