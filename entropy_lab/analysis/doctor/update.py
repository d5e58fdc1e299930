"""Checks of what the loss did: old_logp, age, advantages, gradients and the clip."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from entropy_lab.analysis.doctor.block import (
    CLIPPED_HIGH,
    CLIPPED_LOW,
    DUAL_CLIPPED,
    SELECTED,
    Block,
    Bools,
)
from entropy_lab.analysis.doctor.check import RowCheck, Tally
from entropy_lab.analysis.doctor.facts import Facts
from entropy_lab.analysis.doctor.finding import Verdict

_CLIPPED = CLIPPED_HIGH | CLIPPED_LOW | DUAL_CLIPPED
_EDGE = 1e-3  # ratios this near to a bound may fall on either side of it
# Methods whose clipped tokens keep a gradient by design.
PUSH_BEYOND = ("ce_gppo", "gppo", "cispo")


def old_logp(block: Block, facts: Facts) -> Tally | None:
    """|logp - old_logp| and |entropy - old_entropy| where age is 0: nothing has moved yet."""
    rows = block.train & block.good & (block.columns["age"] == 0)
    if not rows.any():
        return None
    off = np.abs(block["logp"] - block["old_logp"])[rows]
    if block.has("old_entropy"):
        off = np.fmax(off, np.abs(block["entropy"] - block["old_entropy"])[rows])
    return Tally.count(block.step, off > 1e-4, off, total=float(np.nansum(off)))


def judge_old_logp(tally: Tally, facts: Facts) -> Verdict:
    mean = tally.total / max(1, tally.rows)
    seen = (
        f"{tally.bad:,} of {tally.rows:,} rows of age 0 differ from old_logp or old_entropy, by "
        f"{mean:.2g} nats on average and up to {tally.worst:.2g} (step {tally.step})"
    )
    if not tally.bad:
        return Verdict("ok", f"old_logp is logp in {tally.rows:,} rows of age 0")
    means = "before the first step of a rollout the policy that generated is the policy of now"
    do = (
        "check that old_logp was computed with the present weights, at the sampling temperature "
        "and without dropout, for the same tokens"
    )
    aged = not facts.per_step.empty and facts.per_step["age_max"].max() > 0
    if facts.bundled or (aged and mean > 0.05):
        return Verdict("error", seen, f"{means}: old_logp is stale or of another pass", do)
    if aged:
        return Verdict("note", seen, f"{means}: two engines or layouts differ by this much")
    return Verdict("note", seen, "no row has age > 0, so perhaps age is not passed", f"{do}")


def age(block: Block, facts: Facts) -> Tally | None:
    """Rows whose age is not the step minus the first step of their rollout."""
    first = facts.of_responses(block.uid, "step")
    if not facts.bundled or first is None:
        return None
    expected = np.minimum(block.step - first, 255)[block.response]
    known = np.isfinite(expected) & block.train
    return Tally.count(block.step, known & (block.columns["age"] != expected))


def judge_age(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "age is the number of steps since the rollout")
    return Verdict(
        "error",
        tally.seen("rows have another age than the steps since their rollout"),
        "on-policy and off-policy rows are mixed up",
        "age counts the optimizer steps since the responses were generated",
    )


def advantage(block: Block, facts: Facts) -> Tally | None:
    """Mean advantage of each response's rows against samples.advantage."""
    said = facts.of_responses(block.uid, "advantage")
    if said is None or not np.isfinite(said).any():
        return None
    mean = np.bincount(block.response, block["advantage"]) / block.lengths
    off = np.abs(mean - said)
    bad = (off > 1e-3 * (1 + np.abs(said))) & np.isfinite(said) & block.train[block.head]
    return Tally.count(block.step, bad, off)


def judge_advantage(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "token rows and samples have the same advantages")
    return Verdict(
        "error",
        tally.seen(f"responses have another mean advantage in tokens than in samples, by up to "
                   f"{tally.worst:.2g}"),
        "the sign regions, cov and steer are computed from the wrong advantage",
        "check the sign, that rows keep their order between reward and loss, and that no uid names "
        "two responses",
    )  # fmt: skip


def advantage_sign(facts: Facts) -> Verdict | None:
    """The sign of the covariance of reward and advantage within each prompt group."""
    need = {"group", "reward", "advantage", "step"}
    if not need <= set(facts.samples.columns):
        return None
    data = facts.samples[sorted(need)].apply(pd.to_numeric, errors="coerce").dropna()
    if data.empty:
        return None
    by = data.groupby(["step", "group"])[["reward", "advantage"]]
    centred = data[["reward", "advantage"]] - by.transform("mean")
    product = centred["reward"] * centred["advantage"]
    cov = product.groupby([data["step"], data["group"]]).sum()
    cov = cov[cov.abs() > 1e-9]
    if cov.empty:
        return None
    share = float((cov < 0).mean())
    seen = f"advantage rises with reward in only {1 - share:.1%} of {len(cov):,} prompt groups"
    if share <= 0.05:
        return Verdict("ok", f"advantage rises with reward in {1 - share:.1%} of {len(cov):,} "
                             "prompt groups")  # fmt: skip
    return Verdict(
        "error" if cov.sum() < 0 else "warning",
        seen,
        "within a prompt group a better response must have the larger advantage",
        "check the sign of A, and that rewards and responses were not permuted",
    )


def _free(block: Block) -> Bools:
    """Training rows that no clip or selection touched and whose advantage is not 0."""
    touched = block.flag(_CLIPPED | SELECTED)
    return block.train & block.good & ~touched & (block["advantage"] != 0) & (block["weight"] > 0)


def grad_sign(block: Block, facts: Facts) -> Tally | None:
    """grad_logp has the sign of A on rows that no clip touched."""
    rows = _free(block) & (block["grad_logp"] != 0)
    if not rows.any():
        return None
    wrong = (block["grad_logp"] * block["advantage"])[rows] < 0
    return Tally.count(block.step, wrong)


def judge_grad_sign(tally: Tally, facts: Facts) -> Verdict:
    if tally.share <= 0.001:
        return Verdict("ok", f"grad_logp has the sign of A in {1 - tally.share:.1%} of the rows")
    return Verdict(
        "error" if tally.share > 0.5 else "warning",
        tally.seen("unclipped rows are pushed against the sign of their advantage"),
        "the loss or the logged advantage has the wrong sign, or another term (a KL penalty) is "
        "stronger than the policy gradient there",
        "grad_logp is -dL/dlogp: positive where A > 0",
    )


def untouched(block: Block, facts: Facts) -> Tally | None:
    """Rows with A != 0 and no flag that got no gradient at all."""
    rows = _free(block)
    return Tally.count(block.step, (block["grad_logp"] == 0)[rows]) if rows.any() else None


def judge_untouched(tally: Tally, facts: Facts) -> Verdict:
    seen = tally.seen("rows with A != 0, unclipped and unselected, got no gradient")
    if tally.share <= 0.001:
        return Verdict("ok", "every unclipped row with A != 0 has a gradient")
    if tally.share > 0.9:
        return Verdict(
            "error",
            seen,
            "the loss does not use the statistics that the probe watches",
            "build the loss from what probe.record returns, not from a second forward",
        )
    return Verdict(
        "note",
        seen,
        "the loss leaves these tokens out and no flag says so",
        "pass the loss's flags to probe.annotate",
    )


def clip_flags(block: Block, facts: Facts) -> Tally | None:
    """Flags 1, 2 and 4 against exp(logp - old_logp) and the method's bounds."""
    low, high, dual = (facts.bound(k) for k in ("clip_low", "clip_high", "dual_clip"))
    if low is None or high is None or facts.step_row.get(block.step, {}).get("dropout_off"):
        return None
    ratio = np.exp(np.clip(block["logp"] - block["old_logp"], -20, 20))
    A, rows = block["advantage"], block.train & block.good & (block["weight"] != 0)
    bad = np.zeros(len(block), bool)
    cases = [
        (CLIPPED_HIGH, A > 0, ratio - (1 + high)),
        (CLIPPED_LOW, A < 0, (1 - low) - ratio),
        (DUAL_CLIPPED, A < 0, ratio - (math.inf if dual is None else dual)),
    ]
    for bit, side, beyond in cases:
        flagged = block.flag(bit)
        bad |= flagged & (beyond < -_EDGE)
        bad |= ~flagged & side & (beyond > _EDGE)
    return Tally.count(block.step, bad & rows)


def judge_clip_flags(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "clip flags follow from the ratios and the method's bounds")
    return Verdict(
        "error",
        tally.seen("rows are flagged as clipped within the bounds, or not flagged beyond them"),
        f"bounds {facts.method.get('clip_low')} and {facts.method.get('clip_high')} of run.json, "
        "the ratio exp(logp - old_logp) and the flags contradict one another",
        "check old_logp, and that the loss used the bounds that run.json states",
    )


def clip_gradient(block: Block, facts: Facts) -> Tally | None:
    """Clipped rows that still carry a gradient."""
    rows = block.train & block.flag(_CLIPPED) & ~block.flag(SELECTED)
    if facts.method.get("name") in PUSH_BEYOND or not rows.any():
        return None
    return Tally.count(block.step, (block["grad_logp"] != 0)[rows])


def judge_clip_gradient(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", f"{tally.rows:,} clipped rows have gradient 0")
    return Verdict(
        "error" if facts.method else "warning",
        tally.seen("rows are flagged as clipped and still have a gradient"),
        "clipped tokens count in the update, so closed forms with the clip leave out what acted",
        "the loss must take min(r A, clip(r) A), or the flags belong to other rows",
    )


UPDATE_CHECKS: dict[str, RowCheck] = {
    "old_logp": RowCheck(("logp", "entropy", "old_logp"), old_logp, judge_old_logp),
    "age": RowCheck((), age, judge_age),
    "advantage": RowCheck(("advantage",), advantage, judge_advantage),
    "grad_sign": RowCheck(("advantage", "weight", "grad_logp"), grad_sign, judge_grad_sign),
    "untouched": RowCheck(("advantage", "weight", "grad_logp"), untouched, judge_untouched),
    "clip_flags": RowCheck(
        ("logp", "old_logp", "advantage", "weight"), clip_flags, judge_clip_flags
    ),
    "clip_gradient": RowCheck(("grad_logp",), clip_gradient, judge_clip_gradient),
}
