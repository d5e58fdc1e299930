"""The noise floor: how far a measured dH is from the same change computed in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from entropy_lab.probe.inputs import take_rows
from entropy_lab.probe.path import Path
from entropy_lab.probe.precision import Precision
from entropy_lab.probe.scorer import Score, untouched_rng, without_dropout
from entropy_lab.probe.window import Probed

MOST_RESPONSES = 8


def noise_floor(path: Path, score: Score, probed: Probed) -> tuple[float, float, int]:
    """(floor, bias, rows): rms and mean of dH - dH_ref over a few responses, nats.

    dH_ref is H(theta') - H(theta) with both sets of weights (rounded first where the measured
    policy is a cast) upcast to float64 and everything computed in it, on the first responses of
    `probed`. Call it after the step; nothing moves. The rank that has `probed` takes the passes.
    """
    rows = torch.arange(min(MOST_RESPONSES, len(probed.batch.mask)))
    world = path.world
    exact = Path(path.model, path.start, Precision(torch.float64, cast=path.precision.cast), world)
    own = [] if probed.inputs is None else [take_rows(probed.inputs, rows)]
    passes = [exact.measure_each(score, own, alpha=alpha) for alpha in (0.0, 1.0)]
    ends = world.told([p[0].entropy.double() for p in passes] if own else None)
    assert ends is not None
    picked = rows.to(probed.batch.mask.device)
    mask = probed.batch.mask[picked]
    error = (probed.dH[picked].double() - (ends[1] - ends[0]))[mask]
    if not len(error):
        return float("nan"), float("nan"), 0
    return float(error.square().mean().sqrt()), float(error.mean()), len(error)


def entropy64(model: nn.Module, score: Score, inputs: Any, theta: Mapping[str, Tensor]) -> Tensor:
    """Entropy (B, T) of a micro-batch with the parameters `theta`, all of it in float64."""
    values = {n: p.double() if p.is_floating_point() else p for n, p in theta.items()}
    with torch.no_grad(), untouched_rng(model), without_dropout(model):
        with Precision(torch.float64).applied(model, values):
            return score(inputs).entropy.detach().double()


def moved_share(path: Path, dtype: torch.dtype | None = None) -> float:
    """Share of the trainable weights whose value the step changed, once both are rounded to
    `dtype` (None: as they are)."""
    moved = total = 0
    for name, start in path.start.items():
        end = path.world.part(path.world.weight(path.model, name).detach())
        before, after = (x.to(dtype or x.dtype) for x in (start.to(end.device), end))
        moved += int((before != after).sum())
        total += end.numel()
    moved, total = path.world.over_parts(moved), path.world.over_parts(total)
    return moved / total if total else float("nan")
