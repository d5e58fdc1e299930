"""Which token's update moved the policy entropy: exact accounting of one step, and what a
reweighting method would change (FORMULAS: G . delta = sum influence + momentum + decay + other)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropy_lab.probe.path import Named
from entropy_lab.probe.scorer import Scorer
from entropy_lab.probe.update import Update
from entropy_lab.probe.world import ALONE, World
from entropy_lab.stats.moments import accumulation
from entropy_lab.types import TokenBatch


@dataclass(frozen=True)
class Accounts:
    """G . delta of one step and its terms, nats of mean entropy; float64 sums.

    other is the residual, which nothing forces to be small; error is |other| over the sum of the
    absolute terms. layers: the part of G . delta in each layer group.
    """

    G_dtheta: float
    influence_sum: float
    momentum_term: float
    decay_term: float
    other_term: float
    error: float
    layers: dict[str, float]


def entropy_gradient(
    scorer: Scorer, rows: Sequence[tuple[Any, TokenBatch, float]], world: World = ALONE
) -> Named:
    """G = gradient of the mean entropy over `rows`, triples (inputs, batch, inclusion prob).

    Call it at theta. inputs is None for rows of another rank. `.grad` and the random states are
    left alone.
    """
    total = sum(float(batch.mask.sum()) / share for _, batch, share in rows)
    named = [(n, p) for n, p in scorer.model.named_parameters() if p.requires_grad]
    gradient = {n: torch.zeros_like(p, dtype=accumulation(p.dtype)) for n, p in named}
    for inputs, batch, share in (row for row in rows if row[0] is not None):
        entropy = scorer.with_grad(inputs).entropy
        mean = torch.where(batch.mask, entropy, 0.0).sum() / (share * total)
        parts = torch.autograd.grad(mean, [p for _, p in named], allow_unused=True)
        for (name, _), part in zip(named, parts, strict=True):
            if part is not None:
                gradient[name] += part
    return {name: world.summed(g) for name, g in gradient.items()}


def influence_direction(G: Named, update: Update) -> Named:
    """d with influence_t = kappa (c_t d_d logp_t + e_t d_d H_t): lr P G (1-beta1)/(1-beta1^k)."""
    return {n: update.weight[n] * G[n] for n in G}


def marginal_direction(
    G: Named, update: Update, kappa: float, world: World = ALONE
) -> Named:
    """d' with influence_marginal_t = c_t d_d' logp_t + e_t d_d' H_t.

    The derivative of G . delta by the gradient, through v^ (`bend`) and through the clipping
    factor kappa = c/(||g|| + 1e-6): d' <- kappa (d' - g (d'.g)/(||g|| (||g|| + 1e-6))).
    """
    d = {n: G[n] * (update.weight[n] - update.bend[n]) for n in G}
    if kappa >= 1:
        return d
    g = {n: update.clipped[n] / kappa for n in G}
    norm = dot(g, g, world) ** 0.5
    share = dot(d, g, world) / (norm * (norm + 1e-6))
    return {n: kappa * (d[n] - share * g[n]) for n in G}


def accounts(
    G: Named,
    delta: Named,
    update: Update,
    influence: Sequence[Tensor],
    groups: dict[str, list],
    world: World = ALONE,
) -> Accounts:
    """Add up the step; influence: (B, T) tensors of all micro-batches of the update."""
    own = torch.cat([x.double().flatten() for x in influence])
    total, momentum, decay = (dot(G, x, world) for x in (delta, update.momentum, update.decay))
    other = total - float(own.sum()) - momentum - decay
    size = float(own.abs().sum()) + abs(momentum) + abs(decay)
    layers = {
        key: dot({n: G[n] for n in names}, {n: delta[n] for n in names}, world)
        for key, names in groups.items()
        if names
    }
    error = abs(other) / size if size > 0 else 0.0
    return Accounts(total, float(own.sum()), momentum, decay, other, error, layers)


def dot(a: Named, b: Named, world: World = ALONE) -> float:
    """Inner product over all parameters, in float64."""
    return world.over_parts(float(sum((a[n].double() * b[n].double()).sum() for n in a)))
