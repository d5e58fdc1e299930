"""The token rows of one step, sorted and split as the checks read them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from entropy_lab.analysis.tables import HELD_OUT, NOT_SCORABLE

# Bits of the token column `flags`, equal to those of types (a test compares them).
CLIPPED_HIGH, CLIPPED_LOW, DUAL_CLIPPED, SELECTED, TRUNCATED = 1, 2, 4, 8, 16
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """The token rows of one step, sorted by (micro, uid, pos); previous: the probed step before.

    train: rows of the update; good: scorable rows whose logp, entropy and dH are finite.
    head: first row of each response; response: its index for every row.
    """

    step: int
    columns: dict[str, NDArray]
    train: Bools
    good: Bools
    head: NDArray[np.int64]
    response: NDArray[np.int64]
    previous: Block | None = None

    @classmethod
    def of(cls, step: int, table: pa.Table, previous: Block | None) -> Block:
        columns = {name: _numpy(table[name]) for name in table.column_names}
        keys = [columns[k] for k in ("pos", "uid", "micro")]
        if len(keys[0]) and not _sorted(keys[::-1]):
            order = np.lexsort(keys)
            columns = {name: values[order] for name, values in columns.items()}
        flags, uid, micro = columns["flags"], columns["uid"], columns["micro"]
        good = (flags & NOT_SCORABLE) == 0
        for name in ("logp", "entropy", "dH"):
            if name in columns:
                good &= np.isfinite(columns[name])
        new = np.ones(len(uid), bool)
        new[1:] = (uid[1:] != uid[:-1]) | (micro[1:] != micro[:-1])
        before = None if previous is None else cls(**{**vars(previous), "previous": None})
        return cls(
            step,
            columns,
            (flags & HELD_OUT) == 0,
            good,
            np.flatnonzero(new),
            np.cumsum(new) - 1,
            before,
        )

    def __len__(self) -> int:
        return len(self.train)

    def has(self, *names: str) -> bool:
        """Whether each column has a finite value in this step."""
        return all(n in self.columns and bool(np.isfinite(self.columns[n]).any()) for n in names)

    def __getitem__(self, name: str) -> Floats:
        """A column in float64."""
        return self.columns[name].astype(np.float64)

    def flag(self, bits: int) -> Bools:
        return (self.columns["flags"] & bits) != 0

    @property
    def uid(self) -> NDArray[np.int64]:
        """The uid of every response (not row)."""
        return self.columns["uid"][self.head]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of every response."""
        return np.diff(np.append(self.head, len(self)))


def _numpy(column: pa.ChunkedArray) -> NDArray:
    if pa.types.is_integer(column.type) and column.null_count:
        column = column.fill_null(0)
    return column.to_numpy()


def _sorted(keys: list[NDArray]) -> bool:
    undecided = np.ones(len(keys[0]) - 1, bool)
    for key in keys:
        if np.any(undecided & (key[1:] < key[:-1])):
            return False
        undecided &= key[1:] == key[:-1]
    return True


def summarize(block: Block) -> dict[str, float]:
    """The row of Facts.per_step."""
    rows = block.train & block.good
    dH = block["dH"][rows] if "dH" in block.columns else np.empty(0)
    entropy = block["entropy"][rows] if "entropy" in block.columns else np.empty(0)

    def mean(values: NDArray) -> float:
        return float(np.mean(values)) if len(values) else math.nan

    age = block.columns["age"][block.train]
    return {
        "step": block.step,
        "rows": int(block.train.sum()),
        "held_out": int((~block.train).sum()),
        "age": float(age.min()) if len(age) else math.nan,
        "age_max": float(age.max()) if len(age) else math.nan,
        "entropy": mean(entropy),
        "dH": mean(dH),
        "dH_std": float(np.std(dH)) if len(dH) else math.nan,
        "dH_rms": math.sqrt(mean(dH**2)) if len(dH) else math.nan,
        "clip_high": mean(block.flag(CLIPPED_HIGH)[block.train]),
        "clip_low": mean(block.flag(CLIPPED_LOW)[block.train]),
    }
