"""Unlikeliness reward: a correct response counts less the likelier it was (2506.02355)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from entropy_lab.advantages import rank_penalised
from entropy_lab.interventions.base import Clipped
from entropy_lab.types import TokenBatch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Unlikeliness(Clipped):
    """GRPO on the rewards R (1 - beta (G - rank) / G), rank 1 the likeliest of G responses.

    Responses are ranked by their mean old_logp, right and wrong ones alike. PPO's clip at 0.2, no
    dual clip. The source also makes two epochs over each batch and adds a KL penalty of 0.1 to the
    initial policy, which is not part of this method. arXiv 2506.02355. Raises ConfigError for a
    beta outside [0, 1].
    """

    name: ClassVar[str] = "unlikeliness"
    source: ClassVar[str] = "arXiv 2506.02355"

    beta: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("beta", 0 <= self.beta <= 1, "a number in [0, 1], e.g. 0.25")

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """The group-relative advantage of the penalised rewards; (B, T), 0 outside the mask.

        Exactly 0 in groups whose rewards are all equal, which the source leaves out. Raises
        ValueError where batch.reward or batch.group is None.
        """
        reward, group = self._read(batch, "reward", "group")
        total = torch.where(batch.mask, batch.old_logp, 0.0).double().sum(1)  # (B,)
        logp = total / batch.mask.sum(1).clamp(min=1)
        return self._per_token(batch, rank_penalised(reward, group, logp, self.beta))
