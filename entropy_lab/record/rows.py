"""From the arrays that a trainer hands over to sorted Arrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from entropy_lab.record.schema import SORT_KEYS, TOKEN_KEYS, did_you_mean, user_field

Columns = dict[str, np.ndarray]


def checked_tokens(columns: Mapping[str, Any], schema: pa.Schema) -> Columns:
    """Copies of the token columns in the types of the schema, so the caller may reuse his own.

    Every array is (n,). Raises ValueError for a missing key, a name that is neither in the schema
    nor x_*, unequal lengths, or an integer that its column cannot hold.
    """
    missing = [name for name in TOKEN_KEYS if name not in columns]
    if missing:
        raise ValueError(f"token rows lack the key columns {missing}")
    arrays = {}
    for name, values in columns.items():
        index = schema.get_field_index(name)
        if index < 0 and not name.startswith("x_"):
            hint = did_you_mean(name, schema.names) or "prefix your own columns with x_"
            raise ValueError(f"unknown token column {name!r}: {hint}")
        dtype = schema.field(index).type.to_pandas_dtype() if index >= 0 else None
        arrays[name] = _cast(name, np.asarray(values), dtype)
    _check_lengths(arrays)
    return arrays


def _check_lengths(arrays: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}")


def _cast(name: str, values: np.ndarray, dtype: Any) -> np.ndarray:
    if values.ndim != 1:
        raise ValueError(f"column {name!r} has shape {values.shape}: pass one flat array")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"column {name!r} holds {values.dtype} values: pass numbers or booleans")
    if dtype is None:  # a user column: floats are stored as float32, the rest as it is
        dtype = np.float32 if values.dtype.kind == "f" else values.dtype
    target = np.dtype(dtype)
    if target.kind in "iu" and values.dtype != target and values.size:
        info, low, high = np.iinfo(target), values.min(), values.max()
        if values.dtype.kind not in "iub" or low < info.min or high > info.max:
            raise ValueError(
                f"column {name!r} holds {values.dtype} values {low}..{high}: it must be "
                f"{target} within {info.min}..{info.max}"
            )
    return np.array(values, dtype=target, copy=True)


def token_table(chunks: Sequence[Columns], schema: pa.Schema) -> pa.Table:
    """One table of all chunks, sorted by (step, micro, uid, pos); what a chunk lacks is null.

    No chunk is empty.
    """
    user = sorted({name for chunk in chunks for name in chunk if schema.get_field_index(name) < 0})
    fields = list(schema)
    for name in user:
        dtype = np.result_type(*(chunk[name] for chunk in chunks if name in chunk))
        fields.append(user_field(name, pa.from_numpy_dtype(dtype)))
    # Chunks are referred to, not copied: fresh memory costs more here than the encoding.
    columns = [
        pa.chunked_array([_array(chunk, field) for chunk in chunks], field.type) for field in fields
    ]
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=schema.metadata))
    if _is_sorted(chunks):
        return table
    keys = [np.concatenate([chunk[name] for chunk in chunks]) for name in SORT_KEYS]
    return table.combine_chunks().take(pa.array(np.lexsort(keys[::-1])))


def _array(chunk: Columns, field: pa.Field) -> pa.Array:
    values = chunk.get(field.name)
    if values is None:
        return pa.nulls(len(chunk["step"]), field.type)
    return pa.array(values.astype(field.type.to_pandas_dtype(), copy=False), field.type)


def _is_sorted(chunks: Sequence[Columns]) -> bool:
    previous = None
    for keys in ([chunk[name] for name in SORT_KEYS] for chunk in chunks):
        if previous is not None and tuple(key[0] for key in keys) < previous:
            return False
        if not _ascend(keys):
            return False
        previous = tuple(key[-1] for key in keys)
    return True


def _ascend(keys: Sequence[np.ndarray]) -> bool:
    # A row may follow its predecessor if the first key that differs grows.
    undecided = np.ones(len(keys[0]) - 1, dtype=bool)
    for key in keys:
        if np.any(undecided & (key[1:] < key[:-1])):
            return False
        undecided &= key[1:] == key[:-1]
    return True


def step_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One row per step; columns in order of appearance, a float that a row lacks is NaN."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = [_scalars(name, [_scalar(row.get(name)) for row in rows]) for name in names]
    fields = [user_field(n, a.type) for n, a in zip(names, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _scalars(name: str, values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if not kinds <= {bool, int, float, str} or (len(kinds) > 1 and not kinds <= {int, float}):
        raise ValueError(
            f"step column {name!r} holds {sorted(k.__name__ for k in kinds)}: use one of float, "
            "int, bool, str"
        )
    if kinds <= {int, float} and kinds != {int}:  # no value at all counts as unmeasured: NaN
        return pa.array([float("nan") if v is None else float(v) for v in values], pa.float64())
    types = {int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    return pa.array(values, types[kinds.pop()])


def sample_chunk(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """A table of some responses in the types of the schema; further columns are inferred."""
    if "step" not in columns:
        raise ValueError("samples lack the column 'step', the first step of their rollout")
    lists = {name: _listed(values) for name, values in columns.items()}
    _check_lengths(lists)
    fields, arrays = [], []
    for name in (*schema.names, *(n for n in lists if n not in schema.names)):
        known = schema.field(name) if name in schema.names else None
        if name not in lists:
            array = pa.nulls(len(lists["step"]), schema.field(name).type)
        else:
            array = pa.array(lists[name], known.type if known else None)
        fields.append(known or user_field(name, array.type))
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _listed(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def joined(tables: Iterable[pa.Table], metadata: Mapping[bytes, bytes] | None = None) -> pa.Table:
    """Tables one after another; a column that one lacks is null there, integers widen."""
    table = pa.concat_tables(list(tables), promote_options="permissive").combine_chunks()
    return table.replace_schema_metadata(dict(metadata)) if metadata else table
