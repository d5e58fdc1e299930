"""Analysis tables on disk: written whole, read back with errors that name the command."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.analysis.audit_tables import AUDIT_TABLES
from entropy_lab.analysis.replay import REPLAY_TABLES
from entropy_lab.analysis.tables import TABLES
from entropy_lab.analysis.tables_runs import OF_SEVERAL
from entropy_lab.errors import RunError

_COLUMNS = TABLES | AUDIT_TABLES | REPLAY_TABLES


def write_tables(out: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write every table as OUT/<name>.parquet, whole files only.

    Raises RunError where OUT cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in tables.items():
            _write(out / f"{name}.parquet", data, _COLUMNS.get(name, {}))
    except OSError as error:
        raise RunError(f"cannot write the analysis to {out}: {error.strerror or error}") from error


def _write(path: Path, data: pd.DataFrame, meanings: Mapping[str, str]) -> None:
    table = pa.Table.from_pandas(data, preserve_index=False)
    fields = [
        f.with_metadata({"meaning": meanings.get(f.name, "step mean of that predictor")})
        for f in table.schema
    ]
    temporary = path.with_suffix(".parquet.tmp")
    pq.write_table(table.cast(pa.schema(fields)), temporary, compression="zstd")
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_tables(folders: Sequence[Path], names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The named tables of one or more analysis folders, rows of all folders together.

    A folder may be a run directory; its analysis/ is taken then. Raises RunError naming the
    command that makes a missing table.
    """
    homes = [_home(Path(folder)) for folder in folders]
    return {name: pd.concat([_read(h, name) for h in homes], ignore_index=True) for name in names}


def table_path(folder: Path, name: str) -> Path:
    """Where the named table of a folder or run is, whether it exists or not; errors as above."""
    return _home(Path(folder)) / f"{name}.parquet"


def _home(folder: Path) -> Path:
    if not folder.is_dir():
        raise RunError(f"{folder} is not a directory: give a run or the --out of an analysis")
    if not (folder / "run.json").exists():
        return folder
    if not (folder / "analysis" / "summary.parquet").exists():
        raise RunError(f"{folder} is not analyzed yet: run `entropy-lab analyze {folder}` first")
    return folder / "analysis"


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.parquet"
    if not path.exists():
        made = "audit" if name in AUDIT_TABLES else "analyze"
        made = "audit --replay" if name in REPLAY_TABLES else made
        raise RunError(
            f"{folder} has no {path.name}: make it with `entropy-lab {made} RUN_DIR`"
            + (" of several runs" if name in OF_SEVERAL else "")
        )
    try:
        data = pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(
            f"{path} is damaged ({str(error).splitlines()[0]}): run `entropy-lab analyze` again"
        ) from error
    missing = [column for column in _COLUMNS[name] if column not in data]
    if missing:
        raise RunError(
            f"{path} has no column {missing[0]!r}: another version made it, run "
            "`entropy-lab analyze` again"
        )
    return data
