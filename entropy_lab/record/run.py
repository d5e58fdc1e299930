"""Reading a run: the stable door to what a training process recorded.

Works while the run is still going and after it was killed: everything ends at the last whole line
of metrics.jsonl as it was when the Run was opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.errors import RunError
from entropy_lab.record.dataset import Dataset, scan
from entropy_lab.record.evals import read_evals
from entropy_lab.record.events import read_events
from entropy_lab.record.manifest import read_info
from entropy_lab.record.metrics import read_metrics
from entropy_lab.record.schema import FOOTER, did_you_mean, where_logged

if TYPE_CHECKING:  # both are imported where they are used: a trainer needs neither
    import duckdb
    import pandas as pd

KINDS = ("steps", "tokens", "samples")


def open_run(path: Path | str) -> Run:
    """Open a run directory; nothing but run.json and metrics.jsonl is read before it is needed.

    Raises RunError where the directory is not a run or has a newer schema.
    """
    return Run(Path(path))


load = open_run


class Run:
    """A recorded run. `info` is run.json; every reader raises a one-line RunError.

    metrics(), steps(), samples(), tokens(), fixed(), evals() give pandas frames; steps, samples
    and tokens also lazy DuckDB relations (lazy=True), for which rows have no promised order. A
    damaged part is skipped and listed in `damaged`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: dict[str, Any] = read_info(path)
        # Taken before any part is listed, so that all of its rows that are durable are found.
        self._log = read_metrics(path)
        self._connection: duckdb.DuckDBPyConnection | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, last_step={self.last_step})"

    @property
    def last_step(self) -> int | None:
        """The last finished step, None before the first."""
        return self._log.last_step

    @property
    def token_files(self) -> list[Path]:
        """The readable parts of tokens/, by rank and step."""
        return self._datasets["tokens"].files

    @cached_property
    def steps_probed(self) -> list[int]:
        """The steps that have token rows, ascending; [] where none is on disk yet."""
        return self._datasets["tokens"].steps()

    @property
    def damaged(self) -> list[tuple[Path, str]]:
        """(file, reason) of everything that was skipped because it cannot be read."""
        found = [entry for kind in KINDS for entry in self._datasets[kind].damaged]
        lines = [(self.path / "metrics.jsonl", f"line {n} is no JSON") for n in self._log.bad]
        return found + lines

    @cached_property
    def meta(self) -> dict[str, str]:
        """Footer entries (temperature, unit, estimators, sampling rule, ...) of the first part."""
        for kind in ("tokens", "steps"):
            for schema in self._datasets[kind].schemas[:1]:
                pairs = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
                return {k.removeprefix(FOOTER): v for k, v in pairs.items() if k.startswith(FOOTER)}
        return {}

    def columns(self, kind: Literal["tokens", "steps", "samples"] = "tokens") -> list[str]:
        """The columns that any part of a kind has."""
        return self._dataset(kind).schema.names

    def metrics(self) -> pd.DataFrame:
        """metrics.jsonl, one row per finished step; null is NaN."""
        import pandas as pd

        self._finished()
        frame = pd.DataFrame(self._log.lines)
        counts = frame.count()
        empty = counts.index[counts.to_numpy() == 0]
        return frame.astype(dict.fromkeys(empty, "float64"))

    @overload
    def tokens(
        self,
        step: int | Iterable[int] | None = None,
        columns: Sequence[str] | None = None,
        lazy: Literal[False] = False,
    ) -> pd.DataFrame: ...
    @overload
    def tokens(
        self,
        step: int | Iterable[int] | None = None,
        columns: Sequence[str] | None = None,
        *,
        lazy: Literal[True],
    ) -> duckdb.DuckDBPyRelation: ...
    def tokens(
        self,
        step: int | Iterable[int] | None = None,
        columns: Sequence[str] | None = None,
        lazy: bool = False,
    ) -> pd.DataFrame | duckdb.DuckDBPyRelation:
        """Token rows, all or of the given steps; only row groups of those steps are read.

        Rows ascend in (rank, step, micro, uid, pos) per step. Raises RunError for a step without
        token rows and for a column that the run does not log.
        """
        data = self._dataset("tokens", columns)
        steps = None if step is None else self._known_steps(step)
        if lazy:
            return self._relation(data, columns, steps)
        return data.table(columns, steps).to_pandas()

    def iter_steps(
        self, columns: Sequence[str] | None = None, step: int | Iterable[int] | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """(step, token rows of that step) ascending, one step in memory at a time.

        The tables have `columns` in that order (all of them by default); what a part lacks is
        null. Errors as tokens().
        """
        data = self._dataset("tokens", columns)
        steps = self.steps_probed if step is None else self._known_steps(step)
        return data.iterate(columns, steps)

    @overload
    def steps(
        self, columns: Sequence[str] | None = None, lazy: Literal[False] = False
    ) -> pd.DataFrame: ...
    @overload
    def steps(
        self, columns: Sequence[str] | None = None, *, lazy: Literal[True]
    ) -> duckdb.DuckDBPyRelation: ...
    def steps(
        self, columns: Sequence[str] | None = None, lazy: bool = False
    ) -> pd.DataFrame | duckdb.DuckDBPyRelation:
        """One row per optimizer step that is on disk."""
        return self._whole("steps", columns, lazy)

    @overload
    def samples(
        self, columns: Sequence[str] | None = None, lazy: Literal[False] = False
    ) -> pd.DataFrame: ...
    @overload
    def samples(
        self, columns: Sequence[str] | None = None, *, lazy: Literal[True]
    ) -> duckdb.DuckDBPyRelation: ...
    def samples(
        self, columns: Sequence[str] | None = None, lazy: bool = False
    ) -> pd.DataFrame | duckdb.DuckDBPyRelation:
        """One row per response, in the order of rollouts."""
        return self._whole("samples", columns, lazy)

    def fixed(self) -> pd.DataFrame:
        """The fixed probe set; RunError where the run has none."""
        path = self.path / "probe" / "fixed.parquet"
        if not path.exists():
            raise RunError(f"{self.path} has no fixed probe set: it was recorded without one")
        try:
            return pq.ParquetFile(path).read().to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path} is damaged ({str(error).splitlines()[0]})") from error

    def evals(self) -> pd.DataFrame:
        """One row for each evaluation on held-out problems and k; RunError where there is none."""
        table = read_evals(self.path)
        if table is None:
            raise RunError(
                f"{self.path} has no evaluations: train with eval.every above 0 and "
                "task.held_out_share, for example 0.1"
            )
        # One that was made just before a kill belongs to a step that has no line yet.
        taken = 0 if self.last_step is None else self.last_step + 1
        return table.filter(table["step"].to_numpy() <= taken).to_pandas()

    def events(self) -> pd.DataFrame:
        """What went wrong with the measuring: step, kind, error, reason, time, rank; one row each
        time, empty for a run of which there is nothing to tell."""
        import pandas as pd

        columns = ["step", "kind", "error", "reason", "time", "rank"]
        return pd.DataFrame(read_events(self.path), columns=columns)

    @cached_property
    def _datasets(self) -> dict[str, Dataset]:
        last = -1 if self.last_step is None else self.last_step
        return {kind: scan(self.path, kind, last) for kind in KINDS}

    def _finished(self) -> None:
        if self.last_step is None:
            raise RunError(
                f"{self.path} holds no finished step: it was stopped before its first one, or is "
                "only starting"
            )

    def _dataset(self, kind: str, columns: Sequence[str] | None = None) -> Dataset:
        self._finished()
        data = self._datasets[kind]
        if not data.files:
            why = "rows appear on disk when the first part is flushed"
            if data.damaged:
                why = f"{len(data.damaged)} damaged parts, the first {data.damaged[0][0].name}"
            raise RunError(f"{self.path} has no readable {kind} rows: {why}")
        known = data.schema.names
        for name in columns or ():
            if name not in known:
                other = did_you_mean(name, known) or f"it has {', '.join(known)}"
                hint = where_logged(name, known) if kind == "tokens" else other
                raise RunError(f"{self.path} has no {kind} column {name!r}: {hint}")
        return data

    def _known_steps(self, step: int | Iterable[int]) -> list[int]:
        chosen = [int(s) for s in step] if isinstance(step, Iterable) else [int(step)]
        probed = self.steps_probed
        missing = sorted(set(chosen) - set(probed))
        if missing:
            span = f"{len(probed)} probed steps {probed[0]}..{probed[-1]}" if probed else "none"
            raise RunError(f"{self.path} has no token rows of step {missing[0]}: it has {span}")
        return sorted(set(chosen))

    def _whole(
        self, kind: str, columns: Sequence[str] | None, lazy: bool
    ) -> pd.DataFrame | duckdb.DuckDBPyRelation:
        data = self._dataset(kind, columns)
        return self._relation(data, columns, None) if lazy else data.table(columns).to_pandas()

    def _relation(
        self, data: Dataset, columns: Sequence[str] | None, steps: Sequence[int] | None
    ) -> duckdb.DuckDBPyRelation:
        import duckdb

        if self._connection is None:
            self._connection = duckdb.connect(":memory:")
        files, where = data.files, f"step <= {data.last_step}"
        if steps is not None:
            files = data.files_of(steps)
            # The range prunes row groups in every DuckDB; IN alone does not in old ones.
            low, high = (min(steps), max(steps)) if steps else (0, -1)
            chosen = ", ".join(map(str, steps)) or "NULL"
            where = f"step BETWEEN {low} AND {high} AND step IN ({chosen})"
        names = ", ".join(_quoted(name, '"') for name in columns) if columns else "*"
        paths = ", ".join(_quoted(str(path), "'") for path in files)
        source = f"read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"
        return self._connection.sql(f"SELECT {names} FROM {source} WHERE {where}")


def _quoted(text: str, mark: str) -> str:
    return mark + text.replace(mark, mark * 2) + mark
