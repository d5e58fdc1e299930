"""Which responses of a run the token viewer holds: all while they fit, else a stated choice."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from entropy_lab.analysis.tables import HELD_OUT
from entropy_lab.errors import RunError
from entropy_lab.record import Run

# One column each of what may be asked for; what a run lacks is NaN.
SAMPLE_FIELDS = ("group", "reward", "advantage", "length", "truncated")
_EDGES = 0.25  # share of the room for the first and the last step
_RANDOM = 0.25  # share for random groups; the rest goes to the strongest
STRENGTH = ("dH", "influence", "entropy")  # the first that has values ranks responses


class Choice(NamedTuple):
    """responses: the rows of the survey to show, in order; how: the sentence that says which."""

    responses: pd.DataFrame
    how: str


def survey(run: Run) -> pd.DataFrame:
    """A row per (step, response) with token rows in its loss: step, uid, n, strength and
    SAMPLE_FIELDS, sorted by (step, group, uid).

    strength: mean |x| over the tokens of the first of STRENGTH that has values. Raises RunError
    where the run has no token rows.
    """
    have = [name for name in STRENGTH if name in run.columns("tokens")]
    parts = [
        _responses(step, table, have) for step, table in run.iter_steps(["uid", "flags", *have])
    ]
    data = pd.concat(parts, ignore_index=True)
    known = [name for name in have if data[name].notna().any()]
    data["strength"] = data[known[0]] if known else 0.0
    data = data.drop(columns=[name for name in have if name != "strength"])
    data = data.merge(_samples(run), on="uid", how="left")
    data["group"] = data["group"].where(data["group"].notna(), data["uid"]).astype("int64")
    return data.sort_values(["step", "group", "uid"], kind="stable", ignore_index=True)


def _responses(step: int, table: pa.Table, names: list[str]) -> pd.DataFrame:
    flags = table["flags"].to_numpy()
    own = (flags & HELD_OUT) == 0
    uid, at, count = np.unique(
        table["uid"].to_numpy()[own], return_inverse=True, return_counts=True
    )
    columns: dict[str, np.ndarray] = {"step": np.full(len(uid), step), "uid": uid, "n": count}
    for name in names:
        size = np.abs(table[name].to_numpy()[own].astype(np.float64))
        known = np.isfinite(size)
        total = np.bincount(at[known], size[known], len(uid))
        some = np.bincount(at[known], minlength=len(uid))
        columns[name] = np.divide(total, some, out=np.full(len(uid), np.nan), where=some > 0)
    return pd.DataFrame(columns)


def _samples(run: Run) -> pd.DataFrame:
    try:
        have = [c for c in ("uid", *SAMPLE_FIELDS) if c in run.columns("samples")]
        data = run.samples(columns=have)
    except RunError:  # an importer may have no responses
        data = pd.DataFrame({"uid": pd.Series(dtype="int64")})
    if "uid" not in data:
        data = pd.DataFrame({"uid": pd.Series(dtype="int64")})
    return data.reindex(columns=["uid", *SAMPLE_FIELDS]).drop_duplicates("uid")


def choose(responses: pd.DataFrame, tokens: int, seed: int = 0) -> Choice:
    """All responses where they have at most `tokens` tokens, else whole prompt groups of a step.

    A quarter of the room goes to the first and the last step, half to the groups with the largest
    mean strength, a quarter to groups at random by `seed`: a function of the rows and the seed. A
    group that does not fit is passed over, so at least the smallest one is shown.
    """
    total, count = int(responses["n"].sum()), len(responses)
    if total <= tokens:
        return Choice(responses, f"all {count:,} responses of the probed steps")
    groups = responses.groupby(["step", "group"], sort=True).agg(
        n=("n", "sum"), strength=("strength", "mean")
    )
    steps = groups.index.get_level_values("step")
    edge = np.flatnonzero((steps == steps.min()) | (steps == steps.max()))
    strongest = np.argsort(-groups["strength"].fillna(-1.0).to_numpy(), kind="stable")
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    size = groups["n"].to_numpy()
    taken: set[int] = set()
    for order, room in (
        (edge[np.argsort(size[edge], kind="stable")], _EDGES * tokens),
        (shuffled, (_EDGES + _RANDOM) * tokens),
        (strongest, float(tokens)),
    ):
        _fill(taken, order, size, room)
    taken = taken or {int(np.argmin(size))}
    kept = groups.iloc[sorted(taken)].index
    shown = responses[pd.MultiIndex.from_frame(responses[["step", "group"]]).isin(kept)]
    how = (
        f"{len(shown):,} of {count:,} responses, in whole prompt groups: of the first and the last "
        f"step, at random (seed {seed}) and those with the largest mean |change|; the log has all"
    )
    return Choice(shown.reset_index(drop=True), how)


def _fill(taken: set[int], order: np.ndarray, size: np.ndarray, room: float) -> None:
    """Take groups in `order` as long as all that is taken has at most `room` tokens."""
    used = float(sum(size[i] for i in taken))
    for i in order.tolist():
        if i not in taken and used + size[i] <= room:
            taken.add(i)
            used += float(size[i])
