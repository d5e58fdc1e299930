"""One probed optimizer step as its trainer held it, rebuilt from flat rows of the log.

Everything stays float32, as the columns are: a loss then repeats the trainer's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_lab.errors import RunError
from entropy_lab.types import HELD_OUT, TRUNCATED, TokenBatch, TokenGrad, TokenStats

Columns = Mapping[str, NDArray]

KEYS = ("micro", "uid", "pos", "token_id", "age", "flags")
FLOATS = ("advantage", "old_logp", "logp", "entropy")
OPTIONAL = ("state", "weight", "grad_logp", "grad_entropy", "old_entropy", "rollout_logp",
            "m0", "m1", "m2", "dH")  # fmt: skip
MOMENTS = ("m0", "m1", "m2")


@dataclass(frozen=True)
class Responses:
    """What the samples table says of the responses of a step, (B,); None where it says nothing."""

    group: NDArray[np.int64] | None
    reward: NDArray[np.float32] | None
    inclusion: NDArray[np.float64]


@dataclass(frozen=True)
class LoggedStep:
    """The training rows of a step; held-out rows and rows that cannot be scored are left out.

    batches, stats: its micro-batches, (B_i, T) with one T for all; moments are NaN where the log
    has none. recorded: the gradient that the trainer's loss had, (B, T) over all micro-batches,
    None where it was not logged; weight (B, T) the recorded weight. dH (N,) measured; inclusion
    (B,) the chance of each response to be logged. complete: no token of the step is missing.
    memory: the columns method_* of the steps table. left_out: rows that cannot be scored.
    """

    step: int
    age: int
    lr: float
    batches: list[TokenBatch]
    stats: list[TokenStats]
    recorded: TokenGrad | None
    weight: Tensor | None
    dH: NDArray[np.float64]
    inclusion: Tensor
    complete: bool
    memory: dict[str, float]
    left_out: int

    @cached_property
    def whole(self) -> TokenBatch:
        """All micro-batches as one (B, T)."""
        return TokenBatch.cat(self.batches)

    @cached_property
    def statistics(self) -> TokenStats:
        """Their statistics as one (B, T)."""
        return TokenStats.cat(self.stats)

    def flat(self, values: Tensor) -> NDArray[np.float64]:
        """The valid tokens of (B, T) values in the order of the log: (N,)."""
        return values[self.whole.mask].double().numpy()


@dataclass(frozen=True)
class StepFacts:
    """What the steps table says: lr, n_tokens (0: unknown), method_* and the run's seed.

    inclusion: the chance to be logged of a response that the samples table does not know.
    """

    lr: float
    n_tokens: int
    inclusion: float
    memory: dict[str, float]
    seed: int


def rebuild(
    step: int,
    table: pa.Table,
    facts: StepFacts,
    responses: Callable[[NDArray[np.int64], float], Responses],
) -> LoggedStep | None:
    """The step from its token rows; None where no training row can be scored.

    responses(uid, default inclusion): the samples of (B,) responses. Raises RunError where the
    rows of a response are not in order.
    """
    columns = {name: _numpy(table[name]) for name in table.column_names}
    train = (columns["flags"] & HELD_OUT) == 0
    finite = np.all([np.isfinite(columns[name]) for name in FLOATS], axis=0)
    kept = {name: values[train & finite] for name, values in columns.items()}
    if not len(kept["uid"]):
        return None
    heads, row = _responses(step, kept)
    uid = kept["uid"][heads]
    said = responses(uid, facts.inclusion)
    shape = (len(heads), int(kept["pos"].max()) + 1)
    place = (torch.from_numpy(row), torch.from_numpy(kept["pos"].astype(np.int64)))

    def padded(name: str) -> Tensor | None:
        values = kept.get(name)
        if values is None or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            return None
        source = torch.from_numpy(values if values.dtype.kind == "f" else values.astype(np.int64))
        return torch.zeros(shape, dtype=source.dtype).index_put(place, source)

    batch = _batch(step, padded, kept, heads, said, facts, place, shape)
    nothing = torch.full(shape, float("nan"))
    moments = [padded(name) for name in MOMENTS]
    stats = TokenStats(
        logp=_known(padded("logp")),
        entropy=_known(padded("entropy")),
        **{n: nothing if m is None else m for n, m in zip(MOMENTS, moments, strict=True)},
    )
    c, e = padded("grad_logp"), padded("grad_entropy")
    parts = _micros(kept, heads)
    missing = int((train & ~finite).sum())
    measured = kept.get("dH", np.full(len(row), np.nan))
    complete = not missing and (said.inclusion >= 1).all()
    if facts.n_tokens:
        complete = len(row) == facts.n_tokens
    return LoggedStep(
        step=step,
        age=batch.age,
        lr=facts.lr,
        batches=[batch.rows(part) for part in parts],
        stats=[stats.rows(part) for part in parts],
        recorded=None if c is None else TokenGrad(c, torch.zeros(shape) if e is None else e),
        weight=padded("weight"),
        dH=measured.astype(np.float64),
        inclusion=torch.tensor(said.inclusion),
        complete=bool(complete),
        memory=facts.memory,
        left_out=missing,
    )


def _batch(
    step: int,
    padded: Callable[[str], Tensor | None],
    rows: Columns,
    heads: NDArray[np.int64],
    said: Responses,
    facts: StepFacts,
    place: tuple[Tensor, Tensor],
    shape: tuple[int, int],
) -> TokenBatch:
    state = rows.get("state")
    return TokenBatch(
        token_id=_known(padded("token_id")),
        mask=torch.zeros(shape, dtype=torch.bool).index_put(place, torch.tensor(True)),
        advantage=_known(padded("advantage")),
        old_logp=_known(padded("old_logp")),
        old_entropy=padded("old_entropy"),
        rollout_logp=padded("rollout_logp"),
        # A loop that gives no states logs zeros.
        state=padded("state") if state is not None and state.any() else None,
        uid=torch.from_numpy(rows["uid"][heads].astype(np.int64)),
        group=None if said.group is None else torch.tensor(said.group),
        reward=None if said.reward is None else torch.tensor(said.reward),
        truncated=torch.from_numpy((rows["flags"][heads] & TRUNCATED) != 0),
        age=int(rows["age"][0]),
        step=step,
        seed=facts.seed,
    )


def _responses(step: int, rows: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each response (B,), and the response of each row (N,)."""
    micro, uid, pos = (rows[name].astype(np.int64) for name in ("micro", "uid", "pos"))
    new = np.concatenate(([True], (micro[1:] != micro[:-1]) | (uid[1:] != uid[:-1])))
    if np.any(~new[1:] & (pos[1:] <= pos[:-1])) or pos.min() < 0:
        raise RunError(
            f"step {step} holds rows of one response twice or out of order: `entropy-lab doctor` "
            "says more"
        )
    return np.flatnonzero(new), np.cumsum(new) - 1


def _micros(rows: Columns, heads: NDArray[np.int64]) -> list[slice]:
    """The responses of each micro-batch; a rank's first one follows the last of the rank before."""
    micro, uid = (rows[name][heads].astype(np.int64) for name in ("micro", "uid"))
    fresh = (micro[1:] != micro[:-1]) | (uid[1:] < uid[:-1])
    starts = [0, *(np.flatnonzero(fresh) + 1).tolist(), len(heads)]
    return [slice(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]


def _known(values: Tensor | None) -> Tensor:
    assert values is not None  # rows without these values were left out
    return values


def _numpy(column: pa.ChunkedArray) -> NDArray:
    if pa.types.is_integer(column.type) and column.null_count:
        column = column.fill_null(0)
    return np.array(column.to_numpy())  # a copy: torch wants to write
