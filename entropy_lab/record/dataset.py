"""The finished part files of one kind (tokens, steps, samples) and reading them step by step."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.errors import RunError
from entropy_lab.record.parts import list_parts, part_folders


class Span(NamedTuple):
    """One row group and the first and last step in it; rows are sorted by step."""

    path: Path
    group: int
    first: int
    last: int


@dataclass(frozen=True)
class Dataset:
    """Readable parts in the order (rank, step), cut at `last_step`, and the parts left out."""

    files: list[Path]
    schemas: list[pa.Schema]
    spans: list[Span]
    damaged: list[tuple[Path, str]]
    last_step: int

    @cached_property
    def schema(self) -> pa.Schema:
        """The union of the parts' columns by name; integers widen to floats where parts differ."""
        return pa.unify_schemas(self.schemas, promote_options="permissive")

    def steps(self) -> list[int]:
        """The steps that have rows, ascending."""
        found: set[int] = set()
        for span in self.spans:
            if span.first == span.last:
                found.add(span.first)
            else:
                column = _read(span, ["step"])["step"].to_numpy()
                found.update(int(step) for step in np.unique(column))
        return sorted(step for step in found if step <= self.last_step)

    def files_of(self, steps: Sequence[int]) -> list[Path]:
        """The parts that may hold rows of these steps; all of them where some lack a column."""
        if any(schema.names != self.schema.names for schema in self.schemas):
            return self.files
        spans = [s for s in self.spans if any(s.first <= step <= s.last for step in steps)]
        return list(dict.fromkeys(span.path for span in spans)) or self.files[:1]

    def iterate(
        self, columns: Sequence[str] | None = None, steps: Sequence[int] | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """(step, its rows) in ascending order; holds only row groups that the step touches.

        Raises RunError naming a part whose data turn out to be damaged.
        """
        schema = self.schema
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        chosen = sorted(set(self.steps() if steps is None else steps))
        wanted = {step: [] for step in chosen}
        for span in self.spans:
            low, high = bisect_left(chosen, span.first), bisect_right(chosen, span.last)
            for step in chosen[low:high]:
                wanted[step].append(span)
        held: dict[Span, pa.Table] = {}
        for step in chosen:
            held = {span: rows for span, rows in held.items() if span in wanted[step]}
            pieces = []
            for span in wanted[step]:
                if span not in held:
                    held[span] = _read(span, [*schema.names, "step"])
                pieces.append(conform(_rows_of(held[span], step), schema))
            yield step, pa.concat_tables(pieces) if pieces else schema.empty_table()

    def table(
        self, columns: Sequence[str] | None = None, steps: Sequence[int] | None = None
    ) -> pa.Table:
        """All rows (of the steps) in one table, ascending in step."""
        pieces = [rows for _, rows in self.iterate(columns, steps)]
        return pa.concat_tables(pieces) if pieces else self.schema.empty_table()


def scan(run_dir: Path, kind: str, last_step: int) -> Dataset:
    """Look at the footers of all parts that hold steps up to `last_step`.

    A part whose footer cannot be read is left out and listed with the reason.
    """
    files, schemas, spans, damaged = [], [], [], []
    for folder in part_folders(run_dir, kind):
        for part in list_parts(folder):
            if part.first > last_step:
                continue
            try:
                schema, found = _footer(part.path)
            except FileNotFoundError:  # merged into another one since the folder was listed
                return scan(run_dir, kind, last_step)
            except (OSError, ValueError, pa.ArrowException) as error:
                damaged.append((part.path, _reason(error)))
                continue
            files.append(part.path)
            schemas.append(schema)
            spans += [span for span in found if span.first <= last_step]
    return Dataset(files, schemas, spans, damaged, last_step)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _footer(path: Path) -> tuple[pa.Schema, list[Span]]:
    with pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        if "step" not in schema.names:
            raise ValueError("it has no column 'step'")
        column = metadata.schema.to_arrow_schema().get_field_index("step")
        spans = []
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(column).statistics
            if statistics is None or not statistics.has_min_max:
                raise ValueError("its row groups have no statistics of 'step'")
            spans.append(Span(path, group, int(statistics.min), int(statistics.max)))
    return schema, spans


def _read(span: Span, columns: Sequence[str]) -> pa.Table:
    try:
        with pq.ParquetFile(span.path, page_checksum_verification=True) as file:
            present = set(file.schema_arrow.names)
            names = [name for name in dict.fromkeys(columns) if name in present]
            return file.read_row_group(span.group, columns=names)
    except FileNotFoundError:
        raise RunError(
            f"{span.path} is gone: the run has merged its parts since it was opened, or the part "
            "was deleted; open the run again"
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"{span.path} is damaged ({_reason(error)}): move it out of the run to go on without it"
        ) from error


def _rows_of(table: pa.Table, step: int) -> pa.Table:
    steps = table["step"].to_numpy()
    low, high = np.searchsorted(steps, [step, step + 1])
    return table.slice(low, high - low)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the schema in its types; one that the table lacks is null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
