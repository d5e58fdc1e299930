"""What a training process calls to record a run.

Rows gather in memory until their step is committed. Committed steps form a window; a full window
goes to a background thread, which writes it as whole Parquet files. So training never waits for
the disk unless `queue_size` windows are under way, and a killed process loses at most those
windows and the open one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pyarrow as pa

from entropy_lab.errors import RunError
from entropy_lab.record.background import BackgroundWriter
from entropy_lab.record.manifest import read_info, set_status, update_info
from entropy_lab.record.metrics import MetricsWriter, read_metrics
from entropy_lab.record.parts import list_parts, make_folder, rank_folder, write_table
from entropy_lab.record.rows import checked_tokens, sample_chunk
from entropy_lab.record.schema import (
    FOOTER,
    SCHEMA_VERSION,
    Profile,
    profile_predictors,
    sample_schema,
    token_schema,
)
from entropy_lab.record.window import Window


class RunWriter:
    """Writes metrics.jsonl, steps/, tokens/, samples/ and probe/ of one run.

    `meta` goes into every footer (temperature, sampling rule, ...). A window ends after
    `flush_steps` steps or `flush_rows` token rows. With on_full="block" it is handed over once
    fewer than `queue_size` earlier ones are under way, so `tokens_through` in metrics.jsonl
    depends on the rows alone; with "drop" the token rows of a window are dropped instead of
    waiting, counted in run.json, and `tokens_through` is what happens to be durable.
    `measured`: only these float columns of the profile, see token_schema.
    Ranks above 0 write tokens/ and samples/ only.

    After rewind(run_dir, s), where s is a step that ended with flush(), a new writer with equal
    settings that is given the same rows produces the same bytes as one that never stopped.

    Every method raises a one-line RunError, naming file and reason, once a write has failed;
    files written earlier stay. Wrong columns and steps raise ValueError.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        meta: Mapping[str, str] | None = None,
        profile: Profile = "core",
        predictors: Sequence[str] | None = None,
        extra: Sequence[str] = (),
        deep: bool = False,
        measured: Sequence[str] | None = None,
        rank: int = 0,
        flush_steps: int = 16,
        flush_rows: int = 1 << 20,
        queue_size: int = 2,
        on_full: Literal["block", "drop"] = "block",
    ) -> None:
        limits = {"flush_steps": flush_steps, "flush_rows": flush_rows, "queue_size": queue_size}
        for name, value in limits.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if on_full not in ("block", "drop"):
            raise ValueError(f"on_full must be 'block' or 'drop', got {on_full!r}")
        if on_full == "drop" and rank:
            raise ValueError("on_full='drop' is for rank 0: each rank would drop other windows")
        self.run_dir = Path(run_dir)
        self._rank, self._limits, self._drop = rank, limits, on_full == "drop"
        names = profile_predictors(profile) if predictors is None else predictors
        footer = _footer({"estimators": ",".join(names), **(meta or {})})
        schema = token_schema(profile, predictors, extra, deep, measured)
        self._schema = schema.with_metadata(footer)
        self._window = Window()
        self._under_way: deque[tuple[int, int]] = deque()  # (last step of a window, its job)
        self._error: RunError | None = None
        self._closed = False
        self._open()

    def _open(self) -> None:
        self.dropped_windows = int(read_info(self.run_dir).get("dropped_windows") or 0)
        # All that a finished or rewound directory holds is durable.
        self._last_step = self._tokens_through = _resumable_step(self.run_dir, self._rank)
        for kind in ("tokens", "samples"):
            make_folder(rank_folder(self.run_dir, kind, self._rank))
        self._metrics = None
        if self._rank == 0:
            make_folder(self.run_dir / "steps")
            self._metrics = MetricsWriter(self.run_dir)
        self._background = BackgroundWriter()

    @property
    def token_columns(self) -> list[str]:
        """The columns that `tokens` takes, besides x_*."""
        return self._schema.names

    @property
    def tokens_through(self) -> int | None:
        """The step through which all rows are known to be durable; None before the first part."""
        return self._tokens_through

    def tokens(self, columns: Mapping[str, Any]) -> None:
        """Token rows of the step that the next commit() ends; flat arrays (n,), copied.

        Names are those of token_schema plus x_*; a float column that is left out is null.
        """
        self._check()
        self._window.add_tokens(checked_tokens(columns, self._schema))

    def step(self, row: Mapping[str, float | int | bool | str | None]) -> None:
        """The row of steps/ of the step that the next commit() ends; None and NaN: unmeasured."""
        self._check()
        self._window.add_step(dict(row))

    def samples(self, columns: Mapping[str, Any]) -> None:
        """Rows of samples/, handed in before the commit() of their first step, column `step`."""
        self._check()
        chunk = sample_chunk(columns, sample_schema())
        steps = chunk["step"].to_pylist()
        if steps and self._last_step is not None and min(steps) <= self._last_step:
            raise ValueError(
                f"samples of step {min(steps)} come after its commit (last step "
                f"{self._last_step}): hand them in before the first step that uses them ends"
            )
        if steps:
            self._window.add_samples(chunk)

    def fixed(self, columns: Mapping[str, Any]) -> None:
        """Write probe/fixed.parquet, the fixed probe set, at once; a second call replaces it."""
        self._check()
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        table = table.replace_schema_metadata(self._schema.metadata)
        folder = self.run_dir / "probe"
        if self._rank == 0:
            self._try(lambda: make_folder(folder))
            self._try(lambda: write_table(table, folder / "fixed.parquet"))

    def commit(self, metrics: Mapping[str, Any]) -> None:
        """End a step: its rows join the window and its line joins metrics.jsonl.

        `metrics` needs "step", above the last one; "tokens_through" is added. NaN becomes null.
        """
        self._check()
        step = int(metrics["step"])
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"commit of step {step} after step {self._last_step}: steps must grow")
        # Rows before the line: interrupted in between, readers ignore rows that have no line.
        self._window.commit(step)
        window, limits = self._window, self._limits
        due = window.n_steps >= limits["flush_steps"] or window.n_rows >= limits["flush_rows"]
        self._collect(wait=due and not self._drop)
        if self._metrics is not None:
            line = {**metrics, "step": step, "tokens_through": self._tokens_through}
            self._try(partial(self._metrics.append, line))
        self._last_step = step
        if due:
            if len(self._under_way) >= limits["queue_size"] and window.n_rows:
                self._drop_tokens()
            self._hand_over()

    def flush(self) -> None:
        """Block until every row of the committed steps is durable; the window ends here.

        Call it before saving a checkpoint: resuming from there then equals never having stopped.
        """
        self._check()
        if self._window.n_steps:
            self._hand_over()
        self._try(self._background.wait_all)
        if self._metrics is not None:
            self._try(self._metrics.sync)
        self._under_way.clear()
        self._tokens_through = self._last_step

    def close(self, status: str = "finished") -> None:
        """Flush, stop the thread and set the run's status; a second call does nothing.

        After a failed write the status is "failed", and the RunError is raised here only where
        no call before has raised it. Rows of a step that was not committed are left out.
        """
        if self._closed:
            return
        told = self._error is not None
        try:
            if not told:
                self.flush()
        except RunError:
            status = "failed"
        finally:
            self._closed = True
            self._background.stop()
            if self._metrics is not None:
                self._metrics.close()
        if self._rank == 0:
            try:
                set_status(self.run_dir, "failed" if self._error else status)
            except RunError as error:  # where a write has failed before, this one says no more
                self._error = self._error or error
        if self._error is not None and not told:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is None:
            self.close()
            return
        try:
            self.close("interrupted" if isinstance(value, KeyboardInterrupt) else "failed")
        except RunError as error:  # must not hide what is under way
            value.add_note(str(error))

    def _check(self) -> None:
        if self._closed:
            raise RunError(f"the writer of {self.run_dir} is closed")
        self._error = self._error or self._background.error
        if self._error is not None:
            raise self._error

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except RunError as error:
            self._error = self._error or error
            raise

    def _collect(self, wait: bool) -> None:
        """Take note of durable windows; with `wait`, until there is room for one more."""
        while self._under_way:
            last, number = self._under_way[0]
            if wait and len(self._under_way) >= self._limits["queue_size"]:
                self._try(partial(self._background.wait, number))
            elif not self._drop or self._background.done < number:
                return
            self._under_way.popleft()
            self._tokens_through = last

    def _drop_tokens(self) -> None:
        self._window.drop_tokens()
        self.dropped_windows += 1
        self._try(lambda: update_info(self.run_dir, dropped_windows=self.dropped_windows))

    def _hand_over(self) -> None:
        window = self._window
        assert window.last is not None
        job = partial(window.write, self.run_dir, self._rank, self._schema)
        # Submitted first: interrupted in between, close() writes the same files once more.
        number = self._background.submit(job)
        self._under_way.append((window.last, number))
        self._window = window.successor()


def _footer(meta: Mapping[str, str]) -> dict[str, str]:
    entries = {"schema_version": str(SCHEMA_VERSION), "unit": "nats", **meta}
    return {f"{FOOTER}{key}": str(value) for key, value in entries.items()}


def _resumable_step(run_dir: Path, rank: int) -> int | None:
    """The last step of a directory that can be continued as it is; RunError where it cannot."""
    log = read_metrics(run_dir)
    if rank:
        return log.last_step
    parts = list_parts(run_dir / "steps")
    written = parts[-1].last if parts else None
    if log.torn or log.bad or written != log.last_step:
        raise RunError(
            f"{run_dir} was interrupted: metrics.jsonl ends at step {log.last_step}"
            f"{' with a torn line' if log.torn else ''} and its rows at step {written}; rewind it "
            "to a checkpoint first (--resume does)"
        )
    return log.last_step
