"""From tensors of one optimizer step to the columns of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from entropy_lab.probe.window import Probed, mark_not_scorable
from entropy_lab.stats import QUADRANTS, ResponseTerms, quadrant, response_terms
from entropy_lab.types import (
    CLIPPED_HIGH,
    CLIPPED_LOW,
    DUAL_CLIPPED,
    SELECTED,
    TokenBatch,
    TokenGrad,
    TokenStats,
)

Columns = dict[str, np.ndarray]


def token_columns(
    step: int,
    micro: int,
    probed: Probed,
    grad: TokenGrad,
    weight: Tensor,
    flags: Tensor,
    predicted: Mapping[str, Tensor],
    deep: Mapping[str, Tensor] | None = None,
) -> Columns:
    """One row per valid token of a probed micro-batch; every argument holds its rows (B', T).

    predicted: closed forms by name; deep: further columns by their full names.
    """
    batch, before, after = probed.batch, probed.before, probed.after
    assert after is not None and batch.uid is not None
    size, width = batch.mask.shape
    uid = batch.uid[:, None].expand(size, width)
    pos = torch.arange(width, device=batch.mask.device).expand(size, width)
    fields: dict[str, Tensor | None] = {
        "uid": uid,
        "pos": pos,
        "token_id": batch.token_id,
        "state": batch.state if batch.state is not None else torch.zeros_like(batch.token_id),
        "flags": mark_not_scorable(flags, before, after),
        "advantage": batch.advantage,
        "old_logp": batch.old_logp,
        "logp": before.logp,
        "entropy": before.entropy,
        "weight": weight,
        "grad_logp": grad.grad_logp,
        "dH": probed.dH,
        **{f"dH_pred_{name}": value for name, value in predicted.items()},
        "old_entropy": batch.old_entropy,
        "rollout_logp": batch.rollout_logp,
        "m0": before.m0,
        "m1": before.m1,
        "m2": before.m2,
        "grad_entropy": grad.grad_entropy,
        "dlogp": probed.dlogp,
        **(deep or {}),
    }
    columns = {k: v[batch.mask].cpu().numpy() for k, v in fields.items() if v is not None}
    rows = len(columns["uid"])
    columns["step"] = np.full(rows, step, np.int32)
    columns["micro"] = np.full(rows, micro, np.int16)
    columns["age"] = np.full(rows, min(batch.age, 255), np.uint8)
    return columns


class NewResponses:
    """Tells responses that were not seen before, by the uids of the last 64 rollouts.

    A rollout is uid >> 32; older ones are forgotten, so that memory does not grow with the run.
    """

    def __init__(self, rollouts: int = 64) -> None:
        self._rollouts = rollouts
        self._seen: dict[int, set[int]] = {}

    def take(self, uids: Sequence[int]) -> list[bool]:
        """Whether each is new; afterwards none of them is."""
        new = []
        for uid in uids:
            seen = self._seen.setdefault(uid >> 32, set())
            new.append(uid not in seen)
            seen.add(uid)
        while len(self._seen) > self._rollouts:
            del self._seen[next(iter(self._seen))]  # the one that came first
        return new


def sample_columns(batch: TokenBatch, step: int, inclusion_prob: float) -> Columns:
    """One row per response of a micro-batch, for loops that write no samples of their own."""
    assert batch.uid is not None
    valid = batch.mask
    length = valid.sum(1)
    uid = batch.uid.cpu().numpy()
    size = len(uid)
    mean_advantage = torch.where(valid, batch.advantage, 0.0).sum(1) / length.clamp(min=1)
    return {
        "rollout": uid >> 32,
        "group": uid if batch.group is None else batch.group.cpu().numpy(),
        "uid": uid,
        "prompt_id": np.full(size, -1, np.int64),
        "reward": np.full(size, np.nan, np.float32)
        if batch.reward is None
        else batch.reward.float().cpu().numpy(),
        "advantage": mean_advantage.float().cpu().numpy(),
        "length": length.to(torch.int32).cpu().numpy(),
        "truncated": np.zeros(size, bool)
        if batch.truncated is None
        else batch.truncated.cpu().numpy(),
        "inclusion_prob": np.full(size, inclusion_prob, np.float32),
        "step": np.full(size, step, np.int64),
    }


def fixed_columns(parts: Sequence[tuple[TokenBatch, TokenStats]]) -> Columns:
    """One row per valid token of the fixed probe set, with its statistics (B, T) at the start."""
    columns = []
    for batch, stats in parts:
        mask = batch.mask
        assert batch.uid is not None
        named = {
            "uid": batch.uid[:, None].expand(mask.shape),
            "pos": torch.arange(mask.shape[1], device=mask.device).expand(mask.shape),
            "token_id": batch.token_id,
            "logp": stats.logp,
            "entropy": stats.entropy,
        }
        columns.append({k: v[mask].cpu() for k, v in named.items()})
    return {k: torch.cat([c[k] for c in columns]).numpy() for k in columns[0]}


def weighted_mean(values: Tensor, weight: Tensor) -> float:
    """sum(w x) / sum(w) in float64 over all entries with w > 0; NaN where there are none."""
    total = weight.double().sum()
    picked = torch.where(weight > 0, values.double(), 0.0)
    return float((picked * weight).sum() / total) if total > 0 else float("nan")


def loss_scalars(
    batch: TokenBatch,
    stats: TokenStats,
    flags: Tensor,
    weight: Tensor,
    predicted: Mapping[str, Tensor],
) -> dict[str, float]:
    """What one optimizer step costs no forward to know, on all its tokens, each by quadrant.

    Means are over valid tokens; entropy_seq_mean is the mean over responses of token means;
    touched_share counts tokens that the method clipped, selected or reweighted.
    """
    valid = batch.mask.double()
    length = valid.sum(1)
    per_response = torch.where(batch.mask, stats.entropy, 0.0).double().sum(1)
    per_response = per_response / length.clamp(min=1)
    acted = (flags & (CLIPPED_HIGH | CLIPPED_LOW | DUAL_CLIPPED | SELECTED)) > 0
    scalars = {
        "n_tokens": int(valid.sum()),
        "entropy_token_mean": weighted_mean(stats.entropy, valid),
        "entropy_seq_mean": weighted_mean(per_response, (length > 0).double()),
        "clip_high_frac": weighted_mean((flags & CLIPPED_HIGH) > 0, valid),
        "clip_low_frac": weighted_mean((flags & CLIPPED_LOW) > 0, valid),
        "dual_clip_frac": weighted_mean((flags & DUAL_CLIPPED) > 0, valid),
        "touched_share": weighted_mean(acted | (weight != 1), valid),
    }
    named = {"entropy": stats.entropy, **{f"dH_pred_{k}": v for k, v in predicted.items()}}
    region = quadrant(batch.advantage, stats.logp, stats.entropy)
    for number, name in enumerate(QUADRANTS):
        inside = valid * (region == number)
        scalars[f"share_{name}"] = weighted_mean(region == number, valid)
        for key, value in named.items():
            scalars[f"{key}_{name}"] = weighted_mean(value, inside)
    for key, value in predicted.items():
        scalars[f"dH_pred_{key}"] = weighted_mean(value, valid)
    return scalars


def mean_change(parts: list[Probed]) -> float:
    """Mean dH over the probed tokens, weighted by 1 / inclusion probability; NaN without any."""
    if not parts:
        return float("nan")
    values = torch.cat([p.dH[p.batch.mask].double() for p in parts])
    weight = torch.cat(
        [
            torch.full((int(p.batch.mask.sum()),), 1 / p.inclusion_prob, dtype=torch.float64)
            for p in parts
        ]  # fmt: skip
    )
    return weighted_mean(values, weight.to(values.device))


def response_scalars(parts: list[Probed], side: str) -> dict[str, float]:
    """`local_<side>`, `visitation_<side>` in nats per response, `effective_<side>` in responses.

    What the step did to E[sum_t H_t], the entropy of a response, at the states where the probed
    responses stand, and because other tokens come next (see `response_terms`). Means over
    responses weighted by 1 / inclusion probability and by their sequence ratio to the policy that
    sampled them, exp(sum_t (logp - old_logp)): 1 at age 0, where old_logp is the trainer's own.
    effective: (sum w)^2 / sum w^2. Without `group` in the batches the baseline is the mean over
    all of them. NaN without any response.
    """
    terms = _response_terms(parts) if parts else None
    local, visitation = terms.means() if terms else (float("nan"), float("nan"))
    return {
        f"local_{side}": local,
        f"visitation_{side}": visitation,
        f"effective_{side}": terms.effective() if terms else float("nan"),
    }


def _response_terms(parts: list[Probed]) -> ResponseTerms:
    batch = TokenBatch.cat([p.batch for p in parts])
    before = TokenStats.cat([p.before for p in parts])
    after = TokenStats.cat([p.after for p in parts if p.after is not None])
    log_ratio = torch.where(batch.mask, before.logp.double() - batch.old_logp, 0.0).sum(1)
    chance = [torch.full((len(p.batch.mask),), p.inclusion_prob) for p in parts]
    return response_terms(
        batch.mask,
        before.entropy,
        after.entropy - before.entropy,
        after.logp - before.logp,
        batch.group,
        log_ratio,
        1 / torch.cat(chance).to(log_ratio),
    )


def change_by_quadrant(parts: list[Probed]) -> dict[str, float]:
    """`dH_<quadrant>`: mean dH over the probed tokens of each sign region."""
    scalars = {}
    regions = [quadrant(p.batch.advantage, p.before.logp, p.before.entropy) for p in parts]
    for number, name in enumerate(QUADRANTS):
        value = weight = 0.0
        for p, region in zip(parts, regions, strict=True):
            inside = p.batch.mask & (region == number)
            value += float(p.dH[inside].double().sum()) / p.inclusion_prob
            weight += int(inside.sum()) / p.inclusion_prob
        scalars[f"dH_{name}"] = value / weight if weight else float("nan")
    return scalars
