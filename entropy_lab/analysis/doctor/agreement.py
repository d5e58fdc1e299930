"""Checks of rows against other rows: equal states, the next step, the sampler, the entropy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.doctor.block import Block, Floats
from entropy_lab.analysis.doctor.check import RowCheck, Tally
from entropy_lab.analysis.doctor.facts import Facts
from entropy_lab.analysis.doctor.finding import Verdict

_KEPT = 256  # rows of a step that stand for its quantiles
_ONE_PATH = (
    "both passes of a step must run one code path on the same rows: no dropout, same padding and "
    "position ids, same precision"
)


def _key(*columns: NDArray) -> NDArray[np.int64]:
    """One 64-bit number for each row of integer columns; int64 products wrap."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        key = (key + column) * np.int64(-7046029254386353131)  # splitmix64's odd constant
        key ^= key >> 29
    return key


def _deviations(key: NDArray, values: Floats) -> Floats:
    """Deviation of every value from the first one with its key; only keys that occur again."""
    _, first, index = np.unique(key, return_index=True, return_inverse=True)
    rows = np.ones(len(key), bool)
    rows[first] = False
    return (values - values[first][index])[rows]


def _states(block: Block) -> NDArray | None:
    state = block.columns["state"][block.good]
    return state if len(state) and state.any() else None  # all 0: no state was passed


def same_state(block: Block, facts: Facts) -> Tally | None:
    """Entropy of rows in the identical state, and logp of the same token there."""
    state = _states(block)
    if state is None:
        return None
    off = [_deviations(state, block["entropy"][block.good])]
    action = _key(state, block.columns["token_id"][block.good])
    off.append(_deviations(action, block["logp"][block.good]))
    off = np.abs(np.concatenate(off))
    return Tally.count(block.step, off > 1e-3, off, square=float((off**2).sum()))


def judge_same_state(tally: Tally, facts: Facts) -> Verdict:
    rms = math.sqrt(tally.square / tally.rows) if tally.rows else 0.0
    if rms <= 1e-3:
        return Verdict("ok", f"rows in one state agree to {rms:.1g} nats (rms of {tally.rows:,})")
    return Verdict(
        "error" if rms > 0.02 else "warning",
        tally.seen(f"rows differ from another row of their step in the same state (rms {rms:.2g}, "
                   f"up to {tally.worst:.2g} nats)"),
        "one model in one state has one entropy and one logp per token: rows are misaligned with "
        "their tokens, or padding, precision or dropout of the pass before the step differs",
        "check the shift between logits and tokens, position ids under padding, and dropout",
    )  # fmt: skip


def same_state_change(block: Block, facts: Facts) -> Tally | None:
    """dH of rows in the identical state."""
    state = _states(block)
    if state is None:
        return None
    dH = block["dH"][block.good]
    off = np.abs(_deviations(state, dH))
    return Tally.count(
        block.step,
        off > 1e-4,
        off,
        square=float((off**2).sum()),
        base=float((dH**2).mean()) * len(off),
    )


def judge_same_state_change(tally: Tally, facts: Facts) -> Verdict:
    share = math.sqrt(tally.square / tally.base) if tally.base else 0.0
    if share <= 0.1:
        return Verdict("ok", f"dH of rows in one state agrees to {share:.1g} of its rms")
    return Verdict(
        "error" if share > 0.3 else "warning",
        tally.seen(f"rows differ in dH from another row in the same state, by {share:.0%} of the "
                   "rms dH"),
        "what was measured is partly a difference between two passes: dropout or other padding "
        "after the step, or rounding as large as the signal",
        _ONE_PATH,
    )  # fmt: skip


def state_path(block: Block, facts: Facts) -> Tally | None:
    """The same token in the same state leads to the same next state, another one elsewhere."""
    if not block.columns["state"].any() or len(block) < 2:
        return None
    state, token, pos = (block.columns[k] for k in ("state", "token_id", "pos"))
    follows = (block.response[1:] == block.response[:-1]) & (pos[1:] == pos[:-1] + 1)
    pair = _key(state[:-1][follows], token[:-1][follows])
    if not len(pair):
        return None
    _, first, index = np.unique(pair, return_index=True, return_inverse=True)
    after = state[1:][follows]
    return Tally.count(block.step, after != after[first][index])


def judge_state_path(tally: Tally, facts: Facts) -> Verdict:
    if not tally.bad:
        return Verdict("ok", "state hashes follow the tokens")
    return Verdict(
        "error",
        tally.seen("rows reach another next state than a row with the same state and token"),
        "`state` is not the hash of the prompt and the tokens before pos, or token_id is shifted",
        "make it with entropy_lab.state_hash from the tokens that the rows hold",
    )


def chain(block: Block, facts: Facts) -> Tally | None:
    """H + dH of a held-out row against the same row's H before the next step, which trains it."""
    last = block.previous
    if last is None or last.step != block.step - 1 or last.train.all():
        return None
    old, new = last.good & ~last.train, block.good & block.train
    a, b = _match(last, old, block, new)
    if not len(a):
        return None
    dH = last["dH"][a]
    off = np.abs(last["entropy"][a] + dH - block["entropy"][b])
    return Tally.count(
        block.step,
        off > 1e-4,
        off,
        square=float((off**2).sum()),
        base=float((dH**2).sum()),
    )


def _match(last: Block, old: NDArray, block: Block, new: NDArray) -> tuple[NDArray, NDArray]:
    """Row indices of the same (uid, pos, token) in both; each occurs once on its side."""
    keys = ("uid", "pos", "token_id")
    left, right = (
        _key(*(side.columns[k][rows] for k in keys)) for side, rows in ((last, old), (block, new))
    )
    _, a, b = np.intersect1d(left, right, return_indices=True)
    return np.flatnonzero(old)[a], np.flatnonzero(new)[b]


def judge_chain(tally: Tally, facts: Facts) -> Verdict:
    rms = math.sqrt(tally.square / tally.rows)
    signal = math.sqrt(tally.base / tally.rows)
    seen = f"rms {rms:.1g} nats beside rms dH {signal:.1g}, {tally.rows:,} held-out rows"
    if rms <= 1e-5 + 0.01 * signal:
        return Verdict("ok", f"after a step and before the next one agree: {seen}")
    return Verdict(
        "error" if rms > 1e-5 + 0.05 * signal else "warning",
        f"H after a step is not H before the next one in the same rows: {seen}, worst in step "
        f"{tally.step}",
        "no weight moved between the two, so the pass after a step differs from the pass before",
        _ONE_PATH,
    )


def calibration(block: Block, facts: Facts) -> Tally | None:
    """-logp - H summed over each on-policy response: zero on average for the policy's own tokens.

    total, square over responses; base: sum of H.
    """
    near = np.abs(block["logp"] - block["old_logp"]) < 1e-3
    rows = block.train & block.good & near & (block.columns["age"] == 0)
    if not rows.any():
        return None
    entropy = block["entropy"][rows]
    excess = -block["logp"][rows] - entropy
    of_response = np.bincount(block.response[rows], excess)
    return Tally(
        int(rows.sum()),
        total=float(excess.sum()),
        square=float((of_response**2).sum()),
        base=float(entropy.sum()),
    )


def judge_calibration(tally: Tally, facts: Facts) -> Verdict:
    mean, entropy = tally.total / tally.rows, tally.base / tally.rows
    z = tally.total / math.sqrt(tally.square) if tally.square else 0.0
    seen = (
        f"mean surprise -logp of {tally.rows:,} on-policy tokens is {entropy + mean:.3f}, mean "
        f"entropy {entropy:.3f} nats (z = {z:+.1f})"
    )
    if abs(z) < 5 or abs(mean) < 0.05 * entropy:
        return Verdict("ok", seen)
    grave = facts.bundled and abs(mean) > 0.2 * entropy
    return Verdict(
        "error" if grave else "warning",
        seen,
        "tokens drawn from the policy surprise it by its entropy on average: these were drawn at "
        "another temperature or with top-p/top-k, by another policy, or logp is of other tokens",
        "score with the sampling temperature; check the shift between logits and tokens",
    )


def sampler(block: Block, facts: Facts) -> Tally | None:
    """rollout_logp - old_logp where the sampler's own value was logged."""
    if not block.has("rollout_logp"):
        return None
    off = (block["rollout_logp"] - block["old_logp"])[block.train & block.good]
    off = off[np.isfinite(off)]
    if not len(off):
        return None
    kept = off[:: max(1, len(off) // _KEPT)]
    return Tally.count(
        block.step, np.abs(off) > 0.1, np.abs(off), total=float(off.sum()), values=(kept,)
    )


def judge_sampler(tally: Tally, facts: Facts) -> Verdict:
    low, middle, high = np.quantile(np.concatenate(tally.values), [0.01, 0.5, 0.99])
    mean = tally.total / tally.rows
    seen = (
        f"rollout_logp - old_logp: mean {mean:+.2g}, 1 % {low:+.2g}, median {middle:+.2g}, 99 % "
        f"{high:+.2g} nats; {tally.share:.1%} of {tally.rows:,} rows beyond 0.1"
    )
    if tally.share <= 0.01 and abs(mean) <= 0.01:
        return Verdict("ok", seen)
    grave = tally.share > 0.5
    return Verdict(
        "error" if grave else "warning" if tally.share > 0.1 or abs(mean) > 0.02 else "note",
        seen,
        "the sampler and the trainer disagree on the policy: ratios are off by as much, and the "
        "rows are not samples of the policy whose entropy is measured",
        "ask the engine for processed log-probabilities (after temperature and top-p), sync its "
        "weights, or compare precisions",
    )


AGREEMENT_CHECKS: dict[str, RowCheck] = {
    "same_state": RowCheck(("entropy", "logp"), same_state, judge_same_state),
    "same_state_change": RowCheck(("dH",), same_state_change, judge_same_state_change),
    "state_path": RowCheck((), state_path, judge_state_path),
    "chain": RowCheck(("entropy", "dH"), chain, judge_chain),
    "calibration": RowCheck(("logp", "old_logp", "entropy"), calibration, judge_calibration),
    "sampler": RowCheck(("rollout_logp", "old_logp"), sampler, judge_sampler),
}
