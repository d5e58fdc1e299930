"""One step as flat rows: what every token is, and how hard each method pushes it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_lab.analysis.audit.candidate import Push
from entropy_lab.analysis.audit.rebuild import LoggedStep
from entropy_lab.analysis.rows import (
    ENTROPY_EDGES,
    PROBABILITY_EDGES,
    entropy_names,
    probability_names,
)
from entropy_lab.analysis.tables import QUADRANTS
from entropy_lab.predictors import softmax, softmax_state
from entropy_lab.stats import entropy_slopes, quadrant
from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

Array = NDArray[np.float64]
AXES = {
    "quadrant": QUADRANTS,
    "probability": probability_names(),
    "entropy": entropy_names(),
}
_NO_FLAGS = torch.empty(0, dtype=torch.uint8)


@dataclass
class View:
    """The valid tokens (N,) of a step in the order of the log.

    advantage: the reference's. unclipped: r A / N, the push of the plain policy gradient.
    norm_logp, cross, norm_entropy: |e_a - pi|^2, (e_a - pi) . S and |S|^2 of the row's logits; NaN
    without moments. bins: number of the bin on each axis. c, e: the gradients by label. group,
    groups, weight: prompt groups and 1 / inclusion probability.
    """

    step: LoggedStep
    batch: TokenBatch
    advantage: Array
    unclipped: Array
    ratio: Array
    logp: Array
    entropy: Array
    norm_logp: Array
    cross: Array
    norm_entropy: Array
    bins: dict[str, NDArray[np.int64]]
    group: NDArray[np.int64]
    groups: int
    weight: Array
    c: dict[str, Array] = field(default_factory=dict)
    e: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, step: LoggedStep, advantage: Tensor) -> View:
        """advantage (B, T): of the reference."""
        batch, stats = step.whole, step.statistics.map(torch.Tensor.double)
        surprise, mean_surprise, square = (step.flat(x) for x in entropy_slopes(stats))
        logp, entropy, a = step.flat(stats.logp), step.flat(stats.entropy), step.flat(advantage)
        d = np.clip(logp - step.flat(batch.old_logp), -20, 20)
        response = batch.mask.nonzero()[:, 0].numpy()
        assert batch.uid is not None
        name = batch.uid if batch.group is None else batch.group
        _, index = np.unique(name.numpy(), return_inverse=True)
        chance = np.ones(len(index)) if step.complete else step.inclusion.numpy()
        return cls(
            step=step,
            batch=batch,
            advantage=a,
            unclipped=np.exp(d) * a / len(a),
            ratio=np.exp(d),
            logp=logp,
            entropy=entropy,
            norm_logp=np.maximum(1 - 2 * np.exp(logp) + step.flat(stats.m0), 0.0),
            cross=surprise - mean_surprise,
            norm_entropy=square,
            bins={
                "quadrant": step.flat(quadrant(advantage, *_pair(step.statistics))).astype(int),
                "probability": np.searchsorted(PROBABILITY_EDGES[1:-1], np.exp(logp), side="right"),
                "entropy": np.searchsorted(ENTROPY_EDGES[1:-1], entropy, side="right"),
            },
            group=index[response],
            groups=int(index.max()) + 1,
            weight=1 / chance[response],
        )

    def take(self, label: str, push: Push, scale: bool = True) -> None:
        """Remember a method's gradient; scale: by the inclusion probability, because a loss over
        a sample of the tokens divides by fewer."""
        factor = 1 / self.weight if scale else 1.0
        self.c[label] = self.step.flat(push.grad.grad_logp) * factor
        self.e[label] = self.step.flat(push.grad.grad_entropy) * factor

    def touched(self, label: str, reference: str, limit: float) -> NDArray[np.bool_]:
        """Tokens (N,) whose push differs by more than `limit` of the larger of the two."""
        c, base = self.c[label], self.c[reference]
        larger = limit * np.maximum(np.abs(c), np.abs(base))
        on_logp = np.abs(c - base) > larger
        difference = np.abs(self.e[label] - self.e[reference])
        on_entropy = difference * np.sqrt(self.norm_entropy) > larger * np.sqrt(self.norm_logp)
        unknown = ~np.isfinite(self.norm_entropy)
        return on_logp | np.where(unknown, difference > 0, on_entropy)

    def squared(self, c: Array, e: Array) -> Array:
        """|c (e_a - pi) - e S|^2 of each token's logits (N,)."""
        return c * c * self.norm_logp - 2 * c * e * self.cross + e * e * self.norm_entropy

    def predicted(self, label: str) -> dict[str, Array]:
        """dH (N,) by the forms that read the gradient, nats; NaN where the log lacks an input.

        softmax_state sums over the rows of a state, so it needs all of them.
        """
        stats = self.step.statistics.map(torch.Tensor.double)
        grad = TokenGrad(*(self._spread(x[label]) for x in (self.c, self.e)))
        known = {"softmax": self._form(softmax, stats, grad)}
        nothing = np.full(len(self.logp), np.nan)
        whole = self.step.complete and self.batch.state is not None
        known["softmax_state"] = self._form(softmax_state, stats, grad) if whole else nothing
        return known

    def _form(self, form, stats: TokenStats, grad: TokenGrad) -> Array:
        return self.step.flat(form(self.batch, stats, grad, _NO_FLAGS, self.step.lr))

    def _spread(self, values: Array) -> Tensor:
        """Flat values (N,) back at their places (B, T)."""
        mask = self.batch.mask
        return torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(
            mask, torch.from_numpy(values)
        )


def _pair(stats: TokenStats) -> tuple[Tensor, Tensor]:
    return stats.logp, stats.entropy
