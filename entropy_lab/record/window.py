"""The rows between two part boundaries: those of finished steps, and those still waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from entropy_lab.record.parts import part_name, rank_folder, write_table
from entropy_lab.record.rows import Columns, joined, step_table, token_table


class Window:
    """Rows of consecutive steps; add_* holds them back until commit() ends their step."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.last: int | None = None
        self.n_steps = 0
        self.n_rows = 0
        self._tokens: list[Columns] = []
        self._steps: list[Mapping[str, Any]] = []
        self._samples: list[pa.Table] = []
        self._waiting_tokens: list[Columns] = []
        self._waiting_steps: list[Mapping[str, Any]] = []
        self._waiting_samples: list[pa.Table] = []

    def add_tokens(self, columns: Columns) -> None:
        self._waiting_tokens.append(columns)

    def add_step(self, row: Mapping[str, Any]) -> None:
        self._waiting_steps.append(row)

    def add_samples(self, chunk: pa.Table) -> None:
        self._waiting_samples.append(chunk)

    def forget_waiting(self) -> None:
        """Drop the token and step rows of the step that has not ended; samples stay."""
        self._waiting_tokens, self._waiting_steps = [], []
    @property
    def waiting_tokens(self) -> Sequence[Columns]:
        """Token rows of the step that the next commit() ends."""
        return self._waiting_tokens

    def drop_waiting_tokens(self) -> None:
        self._waiting_tokens = []

    def commit(self, step: int) -> None:
        """Take over what waits for `step`; ValueError where a waiting row is of another step."""
        for chunk in self._waiting_tokens:
            steps = chunk["step"]
            if len(steps) and not (steps.min() == steps.max() == step):
                raise ValueError(
                    f"commit of step {step}, but token rows of steps {steps.min()}..{steps.max()}"
                )
        rows = [{"step": step, **row} for row in self._waiting_steps] or [{"step": step}]
        if len(rows) > 1 or rows[0]["step"] != step:
            raise ValueError(
                f"commit of step {step}, but step rows of {[row['step'] for row in rows]}: "
                "there is one row per step"
            )
        waiting, self._waiting_samples = self._waiting_samples, []
        for chunk in waiting:
            due = max(chunk["step"].to_pylist()) <= step
            (self._samples if due else self._waiting_samples).append(chunk)
        self._tokens += self._waiting_tokens
        self.n_rows += sum(len(chunk["step"]) for chunk in self._waiting_tokens)
        self._steps += rows
        self._waiting_tokens, self._waiting_steps = [], []
        self.first = step if self.first is None else self.first
        self.last = step
        self.n_steps += 1

    def successor(self) -> Window:
        """An empty window that inherits the rows still waiting."""
        window = Window()
        window._waiting_tokens = self._waiting_tokens
        window._waiting_steps = self._waiting_steps
        window._waiting_samples = self._waiting_samples
        return window

    def drop_tokens(self) -> None:
        self._tokens, self.n_rows = [], 0

    def write(self, run_dir: Path, rank: int, schema: pa.Schema) -> None:
        """Write the parts of the finished steps; steps/ comes last, it says the rest is there.

        samples/ comes first: a process that dies in between leaves no token row without its reward.
        """
        assert self.first is not None and self.last is not None
        name = part_name(self.first, self.last)
        footer = schema.metadata
        if self._samples:
            table = joined(self._samples, footer)
            write_table(table, rank_folder(run_dir, "samples", rank) / name)
        if self.n_rows:
            table = token_table([c for c in self._tokens if len(c["step"])], schema)
            write_table(table, rank_folder(run_dir, "tokens", rank) / name)
        if rank == 0:
            table = step_table(self._steps).replace_schema_metadata(footer)
            write_table(table, run_dir / "steps" / name)
