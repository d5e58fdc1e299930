"""STEER's mapping driven by what a token's weight really does to entropy (ours)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.interventions.steer import Mapped
from entropy_lab.types import TokenBatch, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class InfluenceSteer(Mapped):
    """STEER with Omega = influence_marginal, the derivative of G . delta by the token's weight.

    It is measured at the step's own parameters, gradient and optimizer state instead of being
    estimated from the token alone. The mapping's fields are those of Mapped (arXiv 2510.10150);
    the score is this project's.
    """

    name: ClassVar[str] = "influence_steer"
    source: ClassVar[str] = "entropy-lab; mapping of arXiv 2510.10150"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"influence_marginal"})

    def _omega(self, batch: TokenBatch, stats: TokenStats | None) -> Float[Tensor, "B T"]:
        """batch.influence_marginal (B, T); ValueError where it is None."""
        return measured_influence(self.name, batch)


def without_influence(method: ClipHigher) -> ClipHigher:
    """The method with every weight at 1, at which influence_marginal is measured."""
    return ClipHigher(**{f.name: getattr(method, f.name) for f in fields(ClipHigher)})


def measured_influence(name: str, batch: TokenBatch) -> Float[Tensor, "B T"]:
    """batch.influence_marginal (B, T), 0 outside the mask; ValueError where it is None."""
    if batch.influence_marginal is None:
        raise ValueError(
            f"{name}.plan reads batch.influence_marginal, which is None: only a step that is about "
            "to be taken has it (the trainer's, or a replayed one), not a log of tokens"
        )
    return batch.influence_marginal.masked_fill(~batch.mask, 0.0)
