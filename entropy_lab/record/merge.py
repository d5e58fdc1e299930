"""Many small parts become few large ones, so that a long run is a handful of files.

A merged part bears the steps of all that it holds in its name, and `list_parts` leaves out a part
that lies within another. So the rename of the merged file is the one moment at which it takes the
others' place: killed before it or after it, every row is there once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.record.dataset import conform
from entropy_lab.record.parts import (
    Part,
    fsync_dir,
    guard,
    list_parts,
    part_folders,
    part_name,
    rank_folder,
    remove_merged,
    stream_file,
)
from entropy_lab.record.schema import ROW_GROUP_ROWS, parquet_options

MERGED_BYTES = 128 * 10**6


def merge_parts(run_dir: Path | str, rank: int | None = None, limit: int = MERGED_BYTES) -> None:
    """Merge neighbouring parts of steps/, tokens/ and samples/ into files of up to `limit` bytes.

    rank: only the folders that this rank writes; None: all. Rows and their order stay; memory is
    that of one row group. Parts that cannot be read, and neighbours with other footers, stay as
    they are. For a run that nobody else writes to, and of which every row counts (finished, or just
    rewound). Raises RunError where the disk refuses; what is there stays whole.
    """
    for folder in _folders(Path(run_dir), rank):
        remove_merged(folder)
        for group in list(_groups(list_parts(folder), limit)):
            merged = folder / part_name(group[0].first, group[-1].last)
            if _write([part.path for part in group], merged):
                remove_merged(folder)
        if folder.is_dir():
            guard(folder, lambda folder=folder: fsync_dir(folder))


def _folders(run_dir: Path, rank: int | None) -> list[Path]:
    if rank is None:
        return [f for kind in ("steps", "tokens", "samples") for f in part_folders(run_dir, kind)]
    own = [rank_folder(run_dir, kind, rank) for kind in ("tokens", "samples")]
    return [run_dir / "steps", *own] if rank == 0 else own


class _Facts(NamedTuple):
    """schema; bytes on disk; first and last step of its rows, which ascend."""

    schema: pa.Schema
    bytes: int
    first: int
    last: int


def _groups(parts: Sequence[Part], limit: int) -> Iterator[list[Part]]:
    """Neighbours, two at least, that may become one file of about `limit` bytes."""
    group: list[Part] = []
    facts: list[_Facts] = []
    for part in parts:
        found = _facts(part.path)
        fits = found is not None and (not facts or _belong(facts, found, limit))
        if not fits:
            if len(group) > 1:
                yield group
            group, facts = [], []
        if found is not None:
            group.append(part)
            facts.append(found)
    if len(group) > 1:
        yield group


def _belong(facts: Sequence[_Facts], found: _Facts, limit: int) -> bool:
    try:
        _union([*(f.schema for f in facts), found.schema])
    except pa.ArrowException:
        return False
    size = sum(f.bytes for f in facts) + found.bytes
    same_footer = found.schema.metadata == facts[-1].schema.metadata
    return same_footer and size <= limit and facts[-1].last <= found.first


def _facts(path: Path) -> _Facts | None:
    """None where the file cannot be read, or its rows are not known to be in order."""
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowException):
        return None
    column = metadata.schema.to_arrow_schema().get_field_index("step")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    spans = [g.column(column).statistics for g in groups] if column >= 0 else []
    if not spans or not all(s is not None and s.has_min_max for s in spans):
        return None
    return _Facts(schema, path.stat().st_size, int(spans[0].min), int(spans[-1].max))


def _union(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all parts as a reader of all of them sees them, with the first's footer."""
    whole = pa.unify_schemas(list(schemas), promote_options="permissive")
    return whole.with_metadata(schemas[0].metadata)


class _Damaged(Exception):
    """A part whose footer is fine and whose data are not."""


def _write(paths: Sequence[Path], merged: Path) -> bool:
    """Whether it worked; a part whose data turn out to be damaged leaves all as it was."""
    schema = _union([pq.read_schema(path) for path in paths])
    options = parquet_options(schema)
    options.pop("row_group_size")
    try:
        with stream_file(merged) as file, pq.ParquetWriter(file, schema, **options) as writer:
            for table in _row_groups(paths, schema):
                writer.write_table(table, ROW_GROUP_ROWS)
    except _Damaged:
        return False
    return True


def _row_groups(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """All rows in order, in pieces of ROW_GROUP_ROWS; the last one may be smaller."""
    waiting = schema.empty_table()
    for rows in _read(paths):
        waiting = pa.concat_tables([waiting, conform(rows, schema)])
        while waiting.num_rows >= ROW_GROUP_ROWS:
            yield waiting.slice(0, ROW_GROUP_ROWS).combine_chunks()
            waiting = waiting.slice(ROW_GROUP_ROWS)
    if waiting.num_rows:
        yield waiting.combine_chunks()


def _read(paths: Sequence[Path]) -> Iterator[pa.Table]:
    for path in paths:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            raise _Damaged from error
