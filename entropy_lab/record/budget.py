"""A limit on the size of a log: past it token rows and texts are left out, and the log says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Bytes on disk (benchmarks.writer, benchmarks.soak) of a float32 of a token; of all its keys, where
# no two states are equal; of a response's row without its texts; and of a byte of text.
FLOAT_BYTES, KEY_BYTES, SAMPLE_BYTES, TEXT_SHARE = 3.7, 12.0, 48.0, 0.4
_TEXTS = ("prompt", "response")


class LogBudget:
    """Counts the estimated bytes of tokens/ and samples/, by rows and text alone.

    From the first step that would exceed `limit` (0: none) no token row and no text is kept; step
    rows, metrics and the numbers of samples go on. A function of the rows, so a resumed run stops
    at the same step. last: the line of metrics.jsonl that the run goes on after.
    """

    def __init__(self, limit: float, last: Mapping[str, Any]) -> None:
        self.limit = limit
        self._used = int(last.get("log_bytes") or 0)

    @property
    def full(self) -> bool:
        return 0 < self.limit < self._used

    @property
    def facts(self) -> dict[str, int | bool]:
        """What a line of metrics.jsonl says of it; nothing without a limit."""
        return {"log_bytes": self._used, "log_full": self.full} if self.limit else {}

    def keeps_tokens(self, chunks: Iterable[Mapping[str, np.ndarray]]) -> bool:
        """Whether the token rows of a step are kept; call it once a step. Nulls cost nothing."""
        if self.limit and not self.full:
            for chunk in chunks:
                floats = sum(values.dtype == np.float32 for values in chunk.values())
                self._used += round(len(chunk["step"]) * (FLOAT_BYTES * floats + KEY_BYTES))
        return not self.full

    def samples(self, chunk: pa.Table) -> pa.Table:
        """The rows of samples/, counted, or without their texts."""
        if not self.limit:
            return chunk
        if not self.full:
            self._used += round(sample_bytes(chunk))
            return chunk
        for name in _TEXTS:
            place = chunk.column_names.index(name)
            field = chunk.schema.field(place)
            chunk = chunk.set_column(place, field, pa.nulls(chunk.num_rows, field.type))
        return chunk


def row_bytes(schema: pa.Schema) -> float:
    """Estimated bytes on disk of a token row of this schema without a null."""
    return FLOAT_BYTES * sum(pa.types.is_float32(f.type) for f in schema) + KEY_BYTES


def sample_bytes(chunk: pa.Table) -> float:
    """Estimated bytes on disk of these rows; the responses of a group share their prompt."""
    text = pc.sum(pc.binary_length(chunk["response"])).as_py() or 0  # type: ignore[attr-defined]
    text += sum(len(p or "") for p in chunk["prompt"].unique().to_pylist())
    return SAMPLE_BYTES * chunk.num_rows + TEXT_SHARE * text
