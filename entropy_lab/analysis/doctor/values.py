"""Checks of single rows: what no distribution can violate, and how the numbers were stored."""

from __future__ import annotations

import math

import numpy as np

from entropy_lab.analysis.doctor.block import Block, Bools, Floats
from entropy_lab.analysis.doctor.check import RowCheck, Tally
from entropy_lab.analysis.doctor.facts import Facts
from entropy_lab.analysis.doctor.finding import Verdict
from entropy_lab.analysis.tables import NOT_SCORABLE
from entropy_lab.record.schema import CORE_FLOATS

ROUNDING = 1e-4  # nats; what a float32 pass over a large vocabulary may be off
_MOMENTS = ("m0", "m1", "m2", "grad_entropy", "dlogp")
_SAME_LOGITS = (
    "logp and entropy must come from the same temperature-scaled logits, of the position that "
    "predicts token_id"
)


def finite(block: Block, facts: Facts) -> Tally:
    """Rows that claim to be scorable and hold a NaN or an infinity."""
    bad = np.zeros(len(block), bool)
    for name in (*CORE_FLOATS, *_MOMENTS):
        if name in block.columns and (name in CORE_FLOATS or block.has(name)):
            bad |= ~np.isfinite(block.columns[name])
    return Tally.count(block.step, bad & ~block.flag(NOT_SCORABLE))


def judge_finite(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", f"{tally.rows:,} rows are finite")
    return Verdict(
        "error",
        tally.seen("rows hold a NaN or an infinity and are not marked as not scorable"),
        "an average over them is NaN, or leaves them out without saying so",
        "find the pass that made them (overflow in half precision, an empty softmax, a row that "
        "was rewritten); the probe marks its own with flag 128",
    )


def scorable(block: Block, facts: Facts) -> Tally:
    return Tally.count(block.step, block.flag(NOT_SCORABLE))


def judge_scorable(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "every row could be scored")
    return Verdict(
        "error" if tally.share > 0.01 else "warning",
        tally.seen("rows could not be scored"),
        "logp or entropy was not finite before or after the step; analysis leaves them out",
        "look at those tokens: -inf logits from a sampler's mask, or a model that diverged",
    )


def logp_range(block: Block, facts: Facts) -> Tally:
    """logp, old_logp, rollout_logp and logp + dlogp are at most 0."""
    worst = np.full(len(block), -np.inf)
    for name in ("logp", "old_logp", "rollout_logp"):
        if block.has(name):
            worst = np.fmax(worst, block[name])
    if block.has("dlogp"):
        worst = np.fmax(worst, block["logp"] + block["dlogp"])
    return Tally.count(block.step, worst > ROUNDING, worst)


def judge_logp_range(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "no log-probability above 0")
    return Verdict(
        "error",
        tally.seen(f"rows have a log-probability above 0, up to {tally.worst:.2g}"),
        "a probability above 1: the kernel or the gather of the token's logit is wrong",
        "compare with log_softmax(logits / T) in float32 on a few tokens",
    )


def entropy_range(block: Block, facts: Facts) -> Tally:
    """0 <= H <= ln V before and after the step."""
    entropy, after = block["entropy"], block["entropy"] + block["dH"]
    off = np.maximum(-entropy, -after)
    if facts.vocab:
        off = np.maximum(off, np.maximum(entropy, after) - math.log(facts.vocab))
    return Tally.count(block.step, (off > ROUNDING) & block.good, off)


def judge_entropy_range(tally: Tally, facts: Facts) -> Verdict:
    bound = f"ln {facts.vocab} = {math.log(facts.vocab):.3f}" if facts.vocab else "ln V (V unknown)"
    if not tally.bad:
        return Verdict("ok", f"0 <= H <= {bound} before and after")
    return Verdict(
        "error",
        tally.seen(f"rows have H or H + dH outside [0, {bound}], by up to {tally.worst:.2g} nats"),
        "no distribution has such an entropy: -logp was logged in its place, or dH belongs to "
        "another row or has the other sign",
        "compare with -sum p log p of softmax(logits / T) on a few tokens",
    )


def entropy_of_row(block: Block, facts: Facts) -> Tally:
    """h(p) <= H <= h(p) + (1 - p) ln(V - 1), h the entropy of {p, 1 - p}, p of the token."""
    off = _outside(block["logp"], block["entropy"], facts.vocab)
    if block.has("dlogp"):
        after = block["logp"] + block["dlogp"], block["entropy"] + block["dH"]
        off = np.fmax(off, _outside(*after, facts.vocab))
    return Tally.count(block.step, (off > 10 * ROUNDING) & block.good, off)


def _outside(logp: Floats, entropy: Floats, vocab: int) -> Floats:
    logp = np.minimum(logp, 0.0)
    p, rest = np.exp(logp), -np.expm1(logp)
    with np.errstate(divide="ignore", invalid="ignore"):
        least = -p * logp - np.where(rest > 0, rest * np.log(rest), 0.0)
    off = least - entropy
    if vocab > 1:
        off = np.maximum(off, entropy - least - rest * math.log(vocab - 1))
    return off


def judge_entropy_of_row(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "every entropy is possible beside its row's logp")
    return Verdict(
        "error",
        tally.seen(f"rows have an entropy that their own logp rules out, by up to "
                   f"{tally.worst:.2g} nats"),
        "entropy and logp belong to different rows or different temperatures: with p = "
        "exp(logp), H is at least the entropy of {p, 1 - p}",
        _SAME_LOGITS,
    )  # fmt: skip


def moments(block: Block, facts: Facts) -> Tally | None:
    """0 < m0 <= 1, m1 <= 0, m0 m2 >= m1^2, -ln m0 <= H; p^2 <= m0, p^2 |log p| <= -m1."""
    if not block.has("m0", "m1", "m2"):
        return None
    m0, m1, m2 = (block[k] for k in ("m0", "m1", "m2"))
    logp = np.minimum(block["logp"], 0.0)
    square = np.exp(2 * logp)
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = [
            m0 - 1,
            -m0,
            m1,
            (m1**2 - m0 * m2),
            -np.log(m0) - block["entropy"],
            square - m0,
            -square * logp + m1,
            square * logp**2 - m2,
        ]
    off = np.fmax.reduce(gaps)
    bad = ((off > 10 * ROUNDING) | (m0 <= 0)) & block.good
    return Tally.count(block.step, bad, off)


def judge_moments(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "m0, m1, m2 agree with entropy and logp")
    return Verdict(
        "error",
        tally.seen(f"rows have moments that contradict their entropy or logp, by up to "
                   f"{tally.worst:.2g}"),
        "one of -ln m0 <= H, m1^2 <= m0 m2, exp(2 logp) <= m0 fails, which hold for every "
        "distribution: the columns come from different rows, temperatures or passes",
        _SAME_LOGITS,
    )  # fmt: skip


def precision(block: Block, facts: Facts) -> Tally:
    """Values of entropy, logp and old_logp whose last 13 mantissa bits are zero."""
    coarse: list[Bools] = []
    for name in ("entropy", "logp", "old_logp"):
        values = block.columns.get(name)
        if values is not None and values.dtype == np.float32:
            # Small values are differences of large logits and have few bits by right.
            bits = values[np.abs(values) > 0.1].view(np.uint32)
            coarse.append((bits & 0x1FFF) == 0)
    return Tally.count(block.step, np.concatenate(coarse) if coarse else np.zeros(0, bool))


def judge_precision(tally: Tally, facts: Facts) -> Verdict:
    if tally.share <= 0.1 or tally.bad < 20:
        return Verdict("ok", "entropy and logp have float32 precision")
    return Verdict(
        "error",
        tally.seen("values of entropy and logp have no more bits than bfloat16 or float16"),
        "bfloat16 has steps of 0.4 %, 0.004 nats at H = 1: as large as the dH of a whole step",
        "compute softmax, entropy and logp in float32 (token_stats does) and never cast them",
    )


def lr_zero(block: Block, facts: Facts) -> Tally | None:
    """dH == 0.0 exactly where the step's learning rate is 0."""
    if facts.step_value(block.step, "lr") != 0.0:
        return None
    dH = np.abs(block["dH"])
    return Tally.count(block.step, (dH != 0) & block.good, dH)


def judge_lr_zero(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", f"dH is exactly 0 in {tally.rows:,} rows of steps with lr 0")
    return Verdict(
        "error",
        tally.seen(f"rows changed in steps with lr 0, by up to {tally.worst:.2g} nats"),
        "nothing moved, so what was measured is a difference between the two passes",
        "before and after must run one code path: same rows, padding, dropout and precision",
    )


VALUE_CHECKS: dict[str, RowCheck] = {
    "finite": RowCheck((), finite, judge_finite),
    "scorable": RowCheck((), scorable, judge_scorable),
    "logp_range": RowCheck(("logp",), logp_range, judge_logp_range),
    "entropy_range": RowCheck(("entropy", "dH"), entropy_range, judge_entropy_range),
    "entropy_of_row": RowCheck(("logp", "entropy", "dH"), entropy_of_row, judge_entropy_of_row),
    "moments": RowCheck(("logp", "entropy", "m0", "m1", "m2"), moments, judge_moments),
    "precision": RowCheck(("logp", "entropy"), precision, judge_precision),
    "lr_zero": RowCheck(("dH",), lr_zero, judge_lr_zero),
}
