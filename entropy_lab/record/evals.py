"""evals.parquet: how the policy answered held-out problems, one row for each k of an evaluation.

`step` is the number of optimizer steps taken before it: 0 is the policy that training started from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.errors import RunError
from entropy_lab.record.parts import guard, list_parts, make_folder, part_name, write_table
from entropy_lab.record.schema import EVAL_INTERVALS, answer_schema, eval_schema

NAME = "evals.parquet"


def write_evals(run_dir: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows, which have all columns of `eval_schema`; rows of equal `_KEY` go.

    The file is written anew, whole, and sorted by `_KEY`. Raises ValueError for
    other columns, RunError where the file there is damaged or the disk refuses.
    """
    path, schema = Path(run_dir) / NAME, eval_schema()
    found = read_evals(path.parent)
    kept = {_key(row): row for row in (found.to_pylist() if found is not None else [])}
    for row in rows:
        if row.keys() != set(schema.names):
            raise ValueError(f"a row of {NAME} has the columns {schema.names}, got {[*row]}")
        kept[_key(row)] = dict(row)
    table = pa.Table.from_pylist([kept[key] for key in sorted(kept)], schema)
    write_table(table, path)


def read_evals(run_dir: Path) -> pa.Table | None:
    """The evaluations of a run; None where it has none, RunError where the file is damaged."""
    path = run_dir / NAME
    if not path.exists():
        return None
    try:
        table = pq.ParquetFile(path).read()
        for name, (dtype, _, _) in EVAL_INTERVALS.items():
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, dtype))
        return table.select(eval_schema().names).cast(eval_schema())
    except (OSError, KeyError, pa.ArrowException) as error:
        raise RunError(
            f"{path} is damaged ({str(error).splitlines()[0]}): move it out of the run to go on "
            "without it"
        ) from error


def cut_evals(run_dir: Path, step: int) -> None:
    """Drop the evaluations of policies that took more than `step` optimizer steps."""
    path, found = run_dir / NAME, read_evals(run_dir)
    if found is None:
        return
    kept = found.filter(found["step"].to_numpy() <= step)
    if not kept.num_rows:
        guard(path, path.unlink)
    elif kept.num_rows < found.num_rows:
        write_table(kept, path)


def write_answers(folder: Path, first: int, last: int, rows: list[dict[str, Any]]) -> None:
    """The responses to problems first..last of an evaluation, as one whole file."""
    make_folder(folder)
    table = pa.Table.from_pylist(rows, answer_schema())
    write_table(table, folder / part_name(first, last))


def read_answers(folder: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """By (first, last) problem, the responses that are there; RunError for a damaged file."""
    found = {}
    for part in list_parts(folder):
        try:
            found[part.first, part.last] = pq.ParquetFile(part.path).read().to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise RunError(
                f"{part.path} is damaged ({str(error).splitlines()[0]}): delete it, and its "
                "problems are asked again"
            ) from error
    return found


# What tells two evaluations apart: the policy, the problems, and how responses were drawn.
_KEY = ("benchmark", "step", "k", "temperature", "top_p", "max_tokens", "samples")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)
