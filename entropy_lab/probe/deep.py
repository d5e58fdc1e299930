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
) -> DeepStart:
    """Remember theta (on `device`; None: in place), the first moments and the gradients, and take
    G over `rows`."""
    triples = [(p.inputs, p.batch, p.inclusion_prob) for p in rows]
    G = entropy_gradient(scorer, triples)
    path = Path.begin(scorer.model, device, scorer.precision)
    return DeepStart(path, before_step(scorer.model, optimizers), G)


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

    measured: the arithmetic of the dH in `train`.
    """
    path, model = start.path, scorer.model
    update = after_step(model, optimizers, start.before, path.start)
    delta, groups = path.delta(), layer_groups(model)
    forms = [
        _path_forms(path, scorer, p, _ends(path, scorer, p, measured), delta, update, groups, jvp)
        for p in train
    ]
    influence = _influence(start, scorer, window, update, kappa, jvp)
    sums = accounts(start.G, delta, update, [i["influence"] for i in influence], groups)
    return DeepResult(forms, influence, sums)


def _ends(path: Path, scorer: Scorer, p: Probed, measured: Precision) -> tuple[Tensor, Tensor]:
    """(H(theta), dH) of these rows in the path's own arithmetic and layout."""
    if path.precision == measured and p.source is p.inputs:
        return p.before.entropy, p.dH
    start, end = (path.measure(scorer.score, p.inputs, alpha=a).entropy for a in (0.0, 1.0))
    return start, end - start


def _path_forms(
    path: Path,
    scorer: Scorer,
    probed: Probed,
    ends: tuple[Tensor, Tensor],
    delta: Named,
    update: Update,
    groups: dict[str, list[str]],
    jvp: Jvp,
) -> dict[str, Tensor]:
    """head, last_block: H with only those moved, minus H(theta). D(a) = H(theta + a delta) -
    H(theta): slope 4 D(1/2) - D(1), second order 2 D(1) - 4 D(1/2); jvp along delta and its parts.

    With D = a + b + c to third order, slope(1/2, 1) = a - c/2 and slope(1/4, 1/2) = a - c/8: their
    difference is 3/4 of the error, so twice it is logged, plus 16 roundings of H.
    """
    score, inputs, (before, whole) = scorer.score, probed.inputs, ends

    def change(names: list[str] | None, alpha: float) -> Tensor:
        return path.measure(score, inputs, names, alpha).entropy - before

    half, quarter = change(None, 0.5), change(None, 0.25)
    slope = 4 * half - whole
    rounding = 16 * torch.finfo(before.dtype).eps * before.clamp(min=1.0)
    error = 2 * (slope - (8 * quarter - 2 * half)).abs() + rounding
    columns = {
        "dH_pred_head": change(groups.get("head", []), 1.0),
        "dH_pred_last_block": change(last_block(groups), 1.0),
        "dH_pred_slope": slope,
        "dH_pred_second_order": 2 * whole - 4 * half,
        "slope_error": error,
    }
    if jvp == "forward":
        columns["dH_pred_jvp"] = path.jvp(score, inputs, delta)[1]
        for name, tangent in _splits(update):
            still = not any(bool(t.any()) for t in tangent.values())
            along = torch.zeros_like(whole) if still else path.jvp(score, inputs, tangent)[1]
            columns[f"dH_pred_{name}"] = along
    else:
        columns["dH_pred_jvp"] = slope
    return {k: torch.where(probed.batch.mask, v, 0.0) for k, v in columns.items()}


def _splits(update: Update) -> list[tuple[str, Named]]:
    parts = zip(SPLITS, (update.grad, update.momentum, update.decay), strict=True)
    return [(name, part) for name, part in parts]


def _influence(
    start: DeepStart, scorer: Scorer, window: Window, update: Update, kappa: float, jvp: Jvp
) -> list[dict[str, Tensor]]:
    """kappa (c d_d logp + e d_d H) along d, and c d_d' logp + e d_d' H along d', per token."""
    directions = {
        "influence": (kappa, influence_direction(start.G, update)),
        "influence_marginal": (1.0, marginal_direction(start.G, update, kappa)),
    }
    out = []
    for record in window.records:
        columns = {}
        for name, (factor, d) in directions.items():
            along = start.path.jvp if jvp == "forward" else start.path.central
            dlogp, dentropy = along(scorer.score, record.inputs, d)
            grad = record.grad
            value = factor * (grad.grad_logp * dlogp + grad.grad_entropy * dentropy)
            columns[name] = torch.where(record.batch.mask, value, 0.0)
        out.append(columns)
    return out
