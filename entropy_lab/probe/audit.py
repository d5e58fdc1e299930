"""The gradient audit: does the whole gradient pass through logp and entropy?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from entropy_lab.probe.optimizers import Optimizers, loss_scale_left, owners
from entropy_lab.probe.scorer import Scorer
from entropy_lab.probe.world import ALONE, World
from entropy_lab.types import TokenGrad


def gradient_audit(
    scorer: Scorer,
    micros: Iterable[tuple[Any, TokenGrad]],
    kappa: float | None,
    optimizers: Optimizers = (),
    world: World = ALONE,
) -> tuple[float, float]:
    """Share of the step's gradient that does not flow through logp and entropy, and kappa.

    With s = sum_t (c_t grad logp_t + e_t grad H_t) by a backward pass of its own and g the
    gradients now in `.grad` (after clipping by kappa): ||g + kappa s|| / ||g||. It is about 1e-6
    in float32 where the loss is a function of logp and entropy alone; an auxiliary loss, a
    full-vocabulary KL or a shifted mask shows as its share. `optimizers`: a loss scale that they
    still have to take out of `.grad` is taken out here. Where `kappa` is None it is fitted,
    -<g, s>/<s, s>, so that only the direction is judged. NaN without any gradient. `.grad` is not
    touched.
    micros: of several processes, this one's; each has its part of the sums.
    """
    model = scorer.model
    params = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    for inputs, grad in micros:
        stats = scorer.with_grad(inputs)
        surrogate = (grad.grad_logp * stats.logp + grad.grad_entropy * stats.entropy).sum()
        parts = torch.autograd.grad(surrogate, params, allow_unused=True)
        for into, part in zip(total, parts, strict=True):
            if part is not None:
                into += part
    total = [world.summed(t) for t in total]
    own = world.trained(model).values()
    scales = {o: loss_scale_left(o) for o in optimizers}
    left = {p: scales[o] for p, (o, _) in owners(optimizers).items()}
    seen = [
        torch.zeros_like(t) if p.grad is None else world.part(p.grad).double() / left.get(p, 1.0)
        for p, t in zip(own, total, strict=True)
    ]

    def dot(a: list[Tensor], b: list[Tensor]) -> float:
        return world.over_parts(float(sum((x * y).sum() for x, y in zip(a, b, strict=True))))

    if kappa is None:
        square = dot(total, total)
        kappa = -dot(seen, total) / square if square > 0 else 1.0
    rest = [g + kappa * s for g, s in zip(seen, total, strict=True)]
    norm = dot(seen, seen) ** 0.5
    if not any(p.grad is not None for p in own):
        kappa = float("nan")  # they are kept elsewhere, or there are none
    return (dot(rest, rest) ** 0.5 / norm if norm > 0 else float("nan")), kappa
