"""Checks of which rows there are: each token once, positions, lengths, held-out rows."""

from __future__ import annotations

import numpy as np

from entropy_lab.analysis.doctor.block import TRUNCATED, Block
from entropy_lab.analysis.doctor.check import RowCheck, Tally
from entropy_lab.analysis.doctor.facts import Facts
from entropy_lab.analysis.doctor.finding import Verdict


def duplicates(block: Block, facts: Facts) -> Tally:
    """Rows whose (micro, uid, pos) occurs before in the same step."""
    pos = block.columns["pos"]
    twice = np.zeros(len(block), bool)
    twice[1:] = (block.response[1:] == block.response[:-1]) & (pos[1:] == pos[:-1])
    return Tally.count(block.step, twice)


def judge_duplicates(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "no (step, micro, uid, pos) occurs twice")
    return Verdict(
        "error",
        tally.seen("rows repeat the (step, micro, uid, pos) of another"),
        "means count these tokens twice, and intervals are too narrow",
        "look for ranks that log the same responses, a part copied twice, or a resume without "
        "rewind; `uid` must differ between responses of a step",
    )


def positions(block: Block, facts: Facts) -> Tally:
    """Responses whose positions are not 0, 1, 2, ...; total: those that do not begin at 0."""
    pos = block.columns["pos"]
    expected = np.arange(len(pos)) - block.head[block.response]
    # A repeated row is the business of `duplicates`.
    twice = np.zeros(len(pos), np.int64)
    twice[1:] = (block.response[1:] == block.response[:-1]) & (pos[1:] == pos[:-1])
    seen = np.cumsum(twice)
    expected -= seen - seen[block.head[block.response]]
    wrong = np.zeros(len(block.head), bool)
    wrong[block.response[pos != expected]] = True
    late = int((pos[block.head] > 0).sum())
    return Tally.count(block.step, wrong, total=late)


def judge_positions(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", f"positions of {tally.rows:,} responses run from 0 without a gap")
    seen = tally.seen(f"responses have gaps in their positions ({tally.total:,.0f} begin above 0)")
    if facts.bundled or tally.total > 0.5 * tally.rows:
        return Verdict(
            "error",
            seen,
            "rows are missing, or the mask is shifted against the tokens",
            "pos 0 is the position that predicts the first response token; check mask[:, 1:] "
            "against mask[:, :-1] where labels are shifted",
        )
    return Verdict(
        "note", seen, "right where a mask leaves out tool output or earlier turns, wrong elsewhere"
    )


def lengths(block: Block, facts: Facts) -> Tally | None:
    """Responses with another number of rows than samples.length says."""
    length = facts.of_responses(block.uid, "length")
    if length is None or not np.isfinite(length).any():
        return None
    known = np.isfinite(length)
    off = np.where(known, np.abs(block.lengths - length), 0.0)
    return Tally.count(block.step, off > 0, off)


def judge_lengths(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", f"{tally.rows:,} responses have a row for each of their tokens")
    return Verdict(
        "error",
        tally.seen(f"responses have more or fewer rows than their length in samples, by up to "
                   f"{tally.worst:.0f}"),
        "the mask of the loss is not the mask of the responses (shifted, padding counted, end "
        "token dropped), rows are lost or doubled",
        "print mask.sum(1) beside the lengths of the responses of one micro-batch",
    )  # fmt: skip


def truncated(block: Block, facts: Facts) -> Tally | None:
    cut = facts.of_responses(block.uid, "truncated")
    if cut is None:
        return None
    said = block.flag(TRUNCATED)[block.head]
    # Held-out rows carry no flags of the loss.
    use = np.isfinite(cut) & block.train[block.head]
    return Tally.count(block.step, use & (said != (cut > 0)))


def judge_truncated(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "flag 16 and samples agree on truncated responses")
    return Verdict(
        "warning",
        tally.seen("responses are truncated in samples or in the flags, not in both"),
        "rows and samples may belong to different responses",
        "check that uid is the same in tokens and samples",
    )


def held_out(block: Block, facts: Facts) -> Tally | None:
    """Held-out responses that the same step trains on, or that carry a gradient."""
    if block.train.all():
        return None
    side = block.train[block.head]
    other = ~side
    shared = other & np.isin(block.uid, block.uid[side])
    if "grad_logp" in block.columns:
        pushed = np.zeros(len(block.head), bool)
        pushed[block.response[~block.train & (block.columns["grad_logp"] != 0)]] = True
        shared |= pushed & other
    return Tally.count(block.step, shared[other])


def judge_held_out(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", f"{tally.rows:,} held-out responses had no part in their step")
    return Verdict(
        "error",
        tally.seen("held-out responses have the uid of one in the update, or a gradient"),
        "dH_heldout contains the update's own tokens and overstates the policy's change",
        "pass probe.hold_out responses that this step does not train on, each with its own uid",
    )


def row_counts(facts: Facts) -> Verdict | None:
    """Training rows of each step against n_probed, and n_probed against n_tokens."""
    probed, tokens = facts.step_column("n_probed"), facts.step_column("n_tokens")
    if len(facts.ranks) > 1 or facts.per_step.empty or probed.empty:
        return None
    rows = facts.per_step.set_index("step")["rows"].astype(float)
    said = probed.reindex(rows.index).dropna()
    wrong = said.index[said.to_numpy() != rows.reindex(said.index).to_numpy()]
    if len(wrong):
        first = wrong[0]
        return Verdict(
            "error",
            f"{len(wrong)} of {len(said)} steps have another number of training rows than "
            f"n_probed (step {first}: {rows[first]:.0f} rows, n_probed {said[first]:.0f})",
            "rows were lost, doubled or relabelled after the step's means were taken",
            "compare with the lengths check; do not edit parts by hand",
        )
    whole = facts.step_column("inclusion_prob").reindex(said.index) == 1
    tokens = tokens.reindex(said.index)
    short = whole & tokens.notna() & (tokens != said)
    if short.any():
        first = short.index[short.to_numpy()][0]
        return Verdict(
            "error",
            f"{int(short.sum())} fully probed steps have n_probed unlike n_tokens (step {first}: "
            f"{said[first]:.0f} and {tokens[first]:.0f})",
            "the probe measured other tokens than the loss averaged over",
            "the mask must not change between record() and optimizer.step()",
        )
    return Verdict("ok", f"rows of {len(said)} steps as counted while training")


LAYOUT_CHECKS: dict[str, RowCheck] = {
    "duplicates": RowCheck((), duplicates, judge_duplicates),
    "positions": RowCheck((), positions, judge_positions),
    "lengths": RowCheck((), lengths, judge_lengths),
    "truncated": RowCheck((), truncated, judge_truncated),
    "held_out": RowCheck((), held_out, judge_held_out),
}
