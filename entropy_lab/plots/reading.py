"""Which tables a figure gets when it is given several folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from entropy_lab.analysis.store import read_tables, table_path
from entropy_lab.analysis.tables_runs import OF_SEVERAL

Tables = dict[str, pd.DataFrame]

# Their rows are over methods: those of two comparisons must not stand side by side as one.
_OVER_METHODS = (*OF_SEVERAL, "pass_at_k", "benchmarks", "drift")


def gathered(
    needs: Sequence[str], also: Sequence[str], folders: Sequence[Path]
) -> Iterator[Tables]:
    """The tables to try, in order: of all folders together, or folder by folder.

    Folder by folder where a needed table compares methods, as far as folders have all of them; else
    the rows of every folder that has the table, a run only once. Raises RunError, naming the
    command, where no folder has a needed table, and for a damaged one.
    """
    if not set(needs) & set(_OVER_METHODS):
        yield {name: _together(folders, name) for name in needs} | _optional(folders, also)
        return
    whole = [f for f in folders if all(table_path(f, name).exists() for name in needs)]
    for folder in whole or folders[:1]:
        yield read_tables([folder], needs) | _optional([folder], also)


def _optional(folders: Sequence[Path], names: Sequence[str]) -> Tables:
    there = [n for n in names if any(table_path(f, n).exists() for f in folders)]
    return {name: _together(folders, name) for name in there}


def _together(folders: Sequence[Path], name: str) -> pd.DataFrame:
    """Rows of every folder that has the table; of a run that two have, those of the first."""
    there = [f for f in folders if table_path(f, name).exists()] or folders[:1]
    parts: list[pd.DataFrame] = []
    seen: set[str] = set()
    for folder in there:
        data = read_tables([folder], [name])[name]
        if "run" in data:
            data = data[~data["run"].isin(seen)]
            seen |= set(data["run"])
        parts.append(data)
    filled = [p for p in parts if len(p)]
    return pd.concat(filled, ignore_index=True) if filled else parts[0]
