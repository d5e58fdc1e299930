"""Clip-Lower: a tighter lower clip raises the entropy (2509.26114)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from entropy_lab.advantages import group_relative
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.interventions.selection import token_hash
from entropy_lab.types import TokenBatch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClipLower(Grpo):
    """GRPO with a lower clip of its own: tokens with A < 0 and r < 1 - clip_low get no gradient.

    clip_low has no default; below GRPO's 0.2 it stops more of them, which raises the entropy.
    random_reward is the source's control arm: a fair coin for each response, a hash of (seed,
    step, uid), takes the place of its reward, so that what then happens to the entropy is the
    clip's doing. arXiv 2509.26114.
    """

    name: ClassVar[str] = "clip_lower"
    source: ClassVar[str] = "arXiv 2509.26114"

    clip_low: float = field()
    random_reward: bool = False

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """GRPO's, of the rewards or of the coins; (B, T), 0 outside the mask.

        Raises ValueError where batch.group, and reward (uid for the coins), is None.
        """
        if not self.random_reward:
            return super().advantages(batch)
        (group,) = self._read(batch, "group")
        coin = (token_hash(batch)[:, 0] < 0).to(batch.old_logp.dtype)  # (B,)
        return self._per_token(batch, group_relative(coin, group))
