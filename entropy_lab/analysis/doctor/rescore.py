"""Re-scoring: a checkpoint's own view of the rows that were measured at its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entropy_lab.analysis.doctor.block import Block
from entropy_lab.analysis.doctor.facts import Facts
from entropy_lab.analysis.doctor.finding import Verdict

MOST_RESPONSES = 64
Scores = tuple[list[NDArray], list[NDArray]]
Widths = tuple[int, int, int]
_LAYOUT = ("micro", "prompt_width", "response_width")


@dataclass(frozen=True)
class Checkpoint:
    """A model of the run after `step` optimizer steps.

    score(prompts, token_ids) -> (logp, entropy): for each response arrays (T,) in nats of
    softmax(logits / sampling temperature), the end token included; text(token_id) decodes a
    response; vocab: size of the vocabulary. score_as, where there is one, takes the micro-batches
    as well, as a list of (rows, prompt width, response width) that follow one another, and scores
    in them.
    """

    step: int
    vocab: int
    score: Callable[[Sequence[str], Sequence[NDArray]], Scores]
    text: Callable[[NDArray], str]
    score_as: Callable[[Sequence[str], Sequence[NDArray], Sequence[Widths]], Scores] | None = None


def rescore(facts: Facts, checkpoint: Checkpoint | None, why_not: str) -> Verdict:
    """H + dH of the step before the checkpoint, or H of the step after it, against the model."""
    if checkpoint is None:
        return _skipped(why_not or "no checkpoint was given")
    taken = checkpoint.step - 1
    step = next((s for s in (taken, checkpoint.step) if s in facts.run.steps_probed), None)
    if step is None:
        return _skipped(f"step {taken}, after which the checkpoint was saved, was not probed")
    block = Block.of(step, next(iter(facts.run.iter_steps(step=step)))[1], None)
    layout = _layout(facts, block) if checkpoint.score_as else None
    wanted = _responses(block) if layout is None else _first_micros(block, layout)
    texts = _texts(facts, block.uid[wanted])
    wanted = [i for i in wanted if int(block.uid[i]) in texts]
    if not wanted:
        return _skipped(f"samples hold no prompts of the responses of step {step}")
    rows = [np.arange(n) + a for a, n in zip(block.head, block.lengths, strict=True)]
    pieces = [rows[i] for i in wanted]
    prompts = [texts[int(block.uid[i])][0] for i in wanted]
    token_id = [block.columns["token_id"][r] for r in pieces]
    decoded = [checkpoint.text(ids) for ids in token_id]
    other = sum(d != texts[int(block.uid[i])][1] for d, i in zip(decoded, wanted, strict=True))
    if other:
        return Verdict(
            "error",
            f"{other} of {len(wanted)} responses of step {step} decode to another text than in "
            "samples",
            "token_id, mask and text do not belong together: a mask shifted by one drops the "
            "first token or adds padding",
            "check how responses are cut out of prompt + response",
        )
    if layout is None or checkpoint.score_as is None:
        scores = checkpoint.score(prompts, token_id)
    else:
        scores = checkpoint.score_as(prompts, token_id, _runs(layout[wanted]))
    return _compare(block, pieces, scores, step == taken, checkpoint.step)


def _skipped(why: str) -> Verdict:
    return Verdict(
        "note",
        f"not re-scored: {why}",
        "whether temperature and mask are right was judged from the rows alone",
    )


def _responses(block: Block) -> list[int]:
    """Indices of some training responses, spread over the step."""
    able = np.flatnonzero(block.train[block.head])
    return [int(i) for i in able[:: max(1, len(able) // MOST_RESPONSES)][:MOST_RESPONSES]]


def _layout(facts: Facts, block: Block) -> NDArray[np.int64] | None:
    """(micro, prompt width, response width) of each response of the step, (n, 3); None where the
    samples do not say all of them."""
    columns = [facts.of_responses(block.uid, name) for name in _LAYOUT]
    known = [c for c in columns if c is not None]
    if len(known) < len(columns):
        return None
    stacked = np.stack(known, axis=1)
    if not np.isfinite(stacked[block.train[block.head]]).all():
        return None
    return np.nan_to_num(stacked, nan=-1).astype(np.int64)


def _first_micros(block: Block, layout: NDArray[np.int64]) -> list[int]:
    """Indices of the training responses of the first micro-batches, whole ones as far as
    MOST_RESPONSES reaches, the first one in any case."""
    able = [int(i) for i in np.flatnonzero(block.train[block.head])]
    chosen: list[int] = []
    for micro in dict.fromkeys(layout[able, 0].tolist()):
        mine = [i for i in able if layout[i, 0] == micro]
        if chosen and len(chosen) + len(mine) > MOST_RESPONSES:
            break
        chosen += mine
    return chosen


def _runs(layout: NDArray[np.int64]) -> list[Widths]:
    """(rows, prompt width, response width) of each micro-batch."""
    found: dict[tuple[int, int, int], int] = {}
    for micro, prompt, response in layout.tolist():
        found[micro, prompt, response] = found.get((micro, prompt, response), 0) + 1
    return [(rows, prompt, response) for (_, prompt, response), rows in found.items()]


def _texts(facts: Facts, uids: NDArray) -> dict[int, tuple[str, str]]:
    """Prompt and response by uid, where samples have both."""
    if not {"prompt", "response", "uid"} <= set(facts.run.columns("samples")):
        return {}
    chosen = ", ".join(str(int(u)) for u in uids)
    found = facts.run.samples(columns=["uid", "prompt", "response"], lazy=True)
    rows = found.filter(f"uid IN ({chosen})").fetchall()
    return {int(u): (p, r) for u, p, r in rows if p is not None and r is not None}


def _compare(
    block: Block, pieces: list[NDArray], scores: Scores, after: bool, saved: int
) -> Verdict:
    rows, logp, entropy = np.concatenate(pieces), *(np.concatenate(s) for s in scores)
    off = [block["entropy"][rows] + (block["dH"][rows] if after else 0.0) - entropy]
    if not after or block.has("dlogp"):
        off.append(block["logp"][rows] + (block["dlogp"][rows] if after else 0.0) - logp)
    names = ("entropy", "logp")[: len(off)]
    size = {
        name: float(np.sqrt(np.mean(x[np.isfinite(x)] ** 2)))
        for name, x in zip(names, off, strict=True)
    }
    seen = (
        f"step-{saved:06d} scores {len(rows):,} tokens of step {block.step} "
        f"({'after' if after else 'before'} it) as logged: rms difference "
        + ", ".join(f"{v:.1g} nats of {k}" for k, v in size.items())
    )
    if max(size.values()) <= 1e-3:
        return Verdict("ok", seen)
    return Verdict(
        "error",
        seen.replace("as logged: ", "otherwise than logged: "),
        "the log is not of this model: another temperature, a mask or token shifted by one, the "
        "entropy of another row, dropout or other padding in the pass after the step",
        "score one response by hand: log_softmax(logits[t] / T) at the position before each token",
    )
