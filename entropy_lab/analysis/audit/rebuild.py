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
from entropy_lab.loss import CorrectionLevel, sampler_weight
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
    correction: level and cap of the weights between sampler and trainer, None for none.
    """

    lr: float
    n_tokens: int
    inclusion: float
    memory: dict[str, float]
    seed: int
    correction: tuple[CorrectionLevel, float] | None = None


@dataclass(frozen=True)
class _Rows:
    """Rows (N,) of a step that can be scored: heads (B,) the first of each response, row (N,) the
    response of each, shape (B, T)."""

    columns: Columns
    heads: NDArray[np.int64]
    row: NDArray[np.int64]
    shape: tuple[int, int]

    @classmethod
    def of(cls, step: int, columns: Columns) -> _Rows:
        """Raises RunError where the rows of a response are not in order."""
        micro, uid, pos = (columns[name].astype(np.int64) for name in ("micro", "uid", "pos"))
        new = np.concatenate(([True], (micro[1:] != micro[:-1]) | (uid[1:] != uid[:-1])))
        if np.any(~new[1:] & (pos[1:] <= pos[:-1])) or pos.min() < 0:
            raise RunError(
                f"step {step} holds rows of one response twice or out of order: `entropy-lab "
                "doctor` says more"
            )
        heads = np.flatnonzero(new)
        return cls(columns, heads, np.cumsum(new) - 1, (len(heads), int(pos.max()) + 1))

    @property
    def place(self) -> tuple[Tensor, Tensor]:
        """Response and position of each row."""
        return torch.tensor(self.row), torch.tensor(self.columns["pos"].astype(np.int64))

    def padded(self, name: str) -> Tensor:
        """A column as (B, T), 0 elsewhere."""
        values = self.columns[name]
        source = torch.tensor(values if values.dtype.kind == "f" else values.astype(np.int64))
        return torch.zeros(self.shape, dtype=source.dtype).index_put(self.place, source)

    def known(self, name: str) -> Tensor | None:
        """The same, None where the log lacks the column or any of its values."""
        values = self.columns.get(name)
        if values is None or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            return None
        return self.padded(name)

    def first(self, name: str) -> NDArray:
        """A column's value in the first row of each response: (B,)."""
        return self.columns[name][self.heads]

    def micros(self) -> list[slice]:
        """Responses of each micro-batch; a rank's first follows the last of the rank before."""
        micro, uid = (self.first(name).astype(np.int64) for name in ("micro", "uid"))
        fresh = (micro[1:] != micro[:-1]) | (uid[1:] < uid[:-1])
        starts = [0, *(np.flatnonzero(fresh) + 1).tolist(), len(self.heads)]
        return [slice(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]


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
    good = train & np.all([np.isfinite(columns[name]) for name in FLOATS], axis=0)
    if not good.any():
        return None
    rows = _Rows.of(step, {name: values[good] for name, values in columns.items()})
    said = responses(rows.first("uid"), facts.inclusion)
    batch, stats = _batch(step, rows, said, facts), _stats(rows)
    c, e = rows.known("grad_logp"), rows.known("grad_entropy")
    if c is not None and e is None:
        e = torch.zeros_like(c)
    complete = len(rows.row) == (facts.n_tokens or train.sum()) and (
        facts.n_tokens > 0 or bool((said.inclusion >= 1).all())
    )
    return LoggedStep(
        step=step,
        age=batch.age,
        lr=facts.lr,
        batches=[batch.rows(part) for part in rows.micros()],
        stats=[stats.rows(part) for part in rows.micros()],
        recorded=None if c is None or e is None else TokenGrad(c, e),
        weight=rows.known("weight"),
        dH=rows.columns.get("dH", np.full(len(rows.row), np.nan)).astype(np.float64),
        inclusion=torch.tensor(said.inclusion),
        complete=bool(complete),
        memory=facts.memory,
        left_out=int((train & ~good).sum()),
    )


def _batch(step: int, rows: _Rows, said: Responses, facts: StepFacts) -> TokenBatch:
    state = rows.columns.get("state")
    mask = torch.zeros(rows.shape, dtype=torch.bool).index_put(rows.place, torch.tensor(True))
    old_logp, rollout_logp = rows.padded("old_logp"), rows.known("rollout_logp")
    weight = None
    if facts.correction is not None and rollout_logp is not None:
        weight = sampler_weight(old_logp, rollout_logp, mask, *facts.correction)
    return TokenBatch(
        token_id=rows.padded("token_id"),
        mask=mask,
        advantage=rows.padded("advantage"),
        old_logp=old_logp,
        old_entropy=rows.known("old_entropy"),
        rollout_logp=rollout_logp,
        rollout_weight=weight,
        # A loop that gives no states logs zeros.
        state=rows.known("state") if state is not None and state.any() else None,
        uid=torch.tensor(rows.first("uid").astype(np.int64)),
        group=None if said.group is None else torch.tensor(said.group),
        reward=None if said.reward is None else torch.tensor(said.reward),
        truncated=torch.tensor((rows.first("flags") & TRUNCATED) != 0),
        age=int(rows.columns["age"][0]),
        step=step,
        seed=facts.seed,
    )


def _stats(rows: _Rows) -> TokenStats:
    nothing = torch.full(rows.shape, float("nan"))
    known = {name: rows.known(name) for name in MOMENTS}
    moments = {name: nothing if m is None else m for name, m in known.items()}
    return TokenStats(logp=rows.padded("logp"), entropy=rows.padded("entropy"), **moments)


def _numpy(column: pa.ChunkedArray) -> NDArray:
    if pa.types.is_integer(column.type) and column.null_count:
        column = column.fill_null(0)
    return column.to_numpy()
