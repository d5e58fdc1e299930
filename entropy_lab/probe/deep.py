"""A deep step: path forms and influence of every token, by a few more passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from entropy_lab.probe.influence import (
    Accounts,
    accounts,
    entropy_gradient,
    influence_direction,
    marginal_direction,
)
from entropy_lab.probe.optimizers import Optimizers
from entropy_lab.probe.path import Named, Path, last_block, layer_groups
from entropy_lab.probe.precision import SAME, Precision
from entropy_lab.probe.scorer import Scorer
from entropy_lab.probe.update import Before, Update, after_step, before_step
from entropy_lab.probe.window import Probed, Window
from entropy_lab.probe.world import ALONE, World

Jvp = Literal["forward", "slope"]
SPLITS = ("jvp_grad", "jvp_momentum", "jvp_decay")


@dataclass(frozen=True)
class DeepStart:
    """Taken at theta, before the optimizer moves it."""

    path: Path
    before: Before
    G: Named


def begin(
    scorer: Scorer,
    optimizers: Optimizers,
    rows: Sequence[Probed],
    device: str | None = None,
    world: World = ALONE,
) -> DeepStart:
    """Remember theta (on `device`; None: in place), the first moments and the gradients, and take
    G over `rows`."""
    triples = [(p.inputs, p.batch, p.inclusion_prob) for p in rows]
    G = entropy_gradient(scorer, triples, world)
    path = Path.begin(scorer.model, device, scorer.precision, world)
    return DeepStart(path, before_step(scorer.model, optimizers, world), G)


@dataclass(frozen=True)
class DeepResult:
    """path: for each probed micro-batch, column -> (B', T); influence: for each micro-batch of
    the update, column -> (B, T); accounts: the step's sums."""

    path: list[dict[str, Tensor]]
    influence: list[dict[str, Tensor]]
    accounts: Accounts


def finish(
    start: DeepStart,
    scorer: Scorer,
    optimizers: Optimizers,
    window: Window,
    train: Sequence[Probed],
    kappa: float,
    jvp: Jvp,
    measured: Precision = SAME,
) -> DeepResult:
    """Everything that needs theta' or the optimizer's state after the step.

    measured: the arithmetic of the dH in `train`. Of several ranks each takes the passes over its
    own micro-batches, at points of the path that all of them put together.
    """
    path, model = start.path, scorer.model
    world = path.world
    update = after_step(model, optimizers, start.before, path.start, world)
    delta, groups = path.delta(), layer_groups(model)
    own = [p for p in train if p.inputs is not None]
    ends = _ends(path, scorer, own, measured)
    forms = world.collect(_path_forms(path, scorer, own, ends, delta, update, groups, jvp))
    influence = world.collect(_influence(start, scorer, window, update, kappa, jvp))
    sums = accounts(start.G, delta, update, [i["influence"] for i in influence], groups, world)
    return DeepResult(forms, influence, sums)


def _ends(
    path: Path, scorer: Scorer, parts: Sequence[Probed], measured: Precision
) -> list[tuple[Tensor, Tensor]]:
    """(H(theta), dH) of the rows of each part in the path's own arithmetic and layout."""
    known = [path.precision == measured and p.source is p.inputs for p in parts]
    inputs = [p.inputs for p, k in zip(parts, known, strict=True) if not k]
    if path.world.size == 1 and not inputs:
        return [(p.before.entropy, p.dH) for p in parts]
    start, end = (path.measure_each(scorer.score, inputs, alpha=a) for a in (0.0, 1.0))
    taken = iter([(a.entropy, b.entropy - a.entropy) for a, b in zip(start, end, strict=True)])
    return [
        (p.before.entropy, p.dH) if k else next(taken) for p, k in zip(parts, known, strict=True)
    ]


def _path_forms(
    path: Path,
    scorer: Scorer,
    parts: Sequence[Probed],
    ends: Sequence[tuple[Tensor, Tensor]],
    delta: Named,
    update: Update,
    groups: dict[str, list[str]],
    jvp: Jvp,
) -> list[dict[str, Tensor]]:
    """head, last_block: H with only those moved, minus H(theta). D(a) = H(theta + a delta) -
    H(theta): slope 4 D(1/2) - D(1), second order 2 D(1) - 4 D(1/2); jvp along delta and its parts.

    With D = a + b + c to third order, slope(1/2, 1) = a - c/2 and slope(1/4, 1/2) = a - c/8: their
    difference is 3/4 of the error, so twice it is logged, plus 16 roundings of H.
    """
    score, inputs = scorer.score, [p.inputs for p in parts]

    def change(names: list[str] | None, alpha: float) -> list[Tensor]:
        found = path.measure_each(score, inputs, names, alpha)
        return [s.entropy - before for s, (before, _) in zip(found, ends, strict=True)]

    halves, quarters = change(None, 0.5), change(None, 0.25)
    heads, blocks = change(groups.get("head", []), 1.0), change(last_block(groups), 1.0)
    out = []
    for (before, whole), half, quarter, head, block in zip(
        ends, halves, quarters, heads, blocks, strict=True
    ):
        slope = 4 * half - whole
        rounding = 16 * torch.finfo(before.dtype).eps * before.clamp(min=1.0)
        error = 2 * (slope - (8 * quarter - 2 * half)).abs() + rounding
        columns = {
            "dH_pred_head": head,
            "dH_pred_last_block": block,
            "dH_pred_slope": slope,
            "dH_pred_second_order": 2 * whole - 4 * half,
            "slope_error": error,
            "dH_pred_jvp": slope,
        }
        out.append(columns)
    if jvp == "forward":
        for name, tangent in [("jvp", delta), *_splits(update)]:
            moves = path.world.over_parts(float(any(bool(t.any()) for t in tangent.values())))
            along = path.jvp_each(score, inputs, tangent) if moves or name == "jvp" else None
            for i, columns in enumerate(out):
                dH = along[i][1] if along else torch.zeros_like(ends[i][1])
                columns[f"dH_pred_{name}"] = dH
    return [
        {k: torch.where(p.batch.mask, v, 0.0) for k, v in columns.items()}
        for p, columns in zip(parts, out, strict=True)
    ]


def _splits(update: Update) -> list[tuple[str, Named]]:
    parts = zip(SPLITS, (update.grad, update.momentum, update.decay), strict=True)
    return [(name, part) for name, part in parts]


def _influence(
    start: DeepStart, scorer: Scorer, window: Window, update: Update, kappa: float, jvp: Jvp
) -> list[dict[str, Tensor]]:
    """kappa (c d_d logp + e d_d H) along d, and c d_d' logp + e d_d' H along d', per token."""
    path = start.path
    directions = {
        "influence": (kappa, influence_direction(start.G, update)),
        "influence_marginal": (1.0, marginal_direction(start.G, update, kappa, path.world)),
    }
    own = path.world.deal(window.records)
    out: list[dict[str, Tensor]] = [{} for _ in own]
    for name, (factor, d) in directions.items():
        along = path.jvp_each if jvp == "forward" else path.central_each
        found = along(scorer.score, [record.inputs for record in own], d)
        for record, columns, (dlogp, dentropy) in zip(own, out, found, strict=True):
            grad = record.grad
            value = factor * (grad.grad_logp * dlogp + grad.grad_entropy * dentropy)
            columns[name] = torch.where(record.batch.mask, value, 0.0)
    return out
