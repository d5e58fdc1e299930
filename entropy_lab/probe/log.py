"""The log of a probe: steps become rows and lines, and it ends in order whatever ends the loop."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from entropy_lab.predictors import PREDICTORS
from entropy_lab.probe import rows as to_rows
from entropy_lab.probe.alarm import Alarm, CollapseAlarm
from entropy_lab.probe.cost import Cost, reported
from entropy_lab.probe.guard import Guard
from entropy_lab.probe.predict import predict_window
from entropy_lab.probe.replicas import Recorded, Replicas, gathered
from entropy_lab.probe.sampling import inclusion_prob
from entropy_lab.probe.step import (
    STEP_METRICS,
    Cadence,
    StepMeasurement,
    write_token_rows,
)
from entropy_lab.probe.window import MicroRecord, Window
from entropy_lab.probe.world import ALONE, World
from entropy_lab.record import RunWriter
from entropy_lab.record.manifest import update_info
from entropy_lab.record.schema import CORE_PREDICTORS, Profile

OnAlarm = Callable[[Alarm], object]
OnFull = Literal["block", "drop"]


def open_writer(
    run_dir: Path | str,
    cadence: Cadence,
    temperature: float,
    profile: Profile,
    on_full: OnFull,
    rank: int = 0,
    world: World = ALONE,
    max_bytes: float = 0,
) -> RunWriter:
    """The writer of a probe's run, whose footers say how its rows were chosen."""
    c = cadence
    return RunWriter(
        run_dir,
        meta={
            "temperature": str(temperature),
            "sampling": f"every={c.every} fraction={c.fraction} seed={c.seed}",
        },
        profile=profile,
        predictors=CORE_PREDICTORS if profile == "core" else tuple(PREDICTORS),
        deep=c.deep_every > 0,
        on_full=on_full,
        rank=rank,
        agreed=world.lowest,
        max_bytes=max_bytes,
    )


class StepLog:
    """Writes what was measured, and closes the run once: by `close`, or where that is never called
    when the process ends or the probe is let go of.

    Once a write has failed nothing more is logged; `unlogged` counts the steps since.
    """

    def __init__(
        self,
        writer: RunWriter,
        guard: Guard,
        *,
        write_samples: bool,
        on_alarm: OnAlarm | None,
        tell_cost: bool,
        replicas: Replicas,
    ) -> None:
        self.writer, self.guard = writer, guard
        self.alarm, self.cost = CollapseAlarm(), Cost()
        self.last_row: dict[str, Any] = {}
        self.ended = False
        self.unlogged = 0
        self._write_samples, self._on_alarm = write_samples, on_alarm
        self._tell_cost, self._replicas = tell_cost, replicas
        self._line: dict[str, Any] | None = None
        self._responses = to_rows.NewResponses()
        self._ringing = False
        self._last = 0
        self._closed = False
        self._process = os.getpid()

    def step(
        self, m: StepMeasurement, window: Window, fraction: float, extra: Mapping[str, Any]
    ) -> None:
        """The rows of the step that was just taken; its line waits for `commit`."""

        alone, tokens, measured = self._replicas.size == 1, window, m
        predicted: dict[str, Tensor] = {}
        shared: list[Recorded] = []

        def write_rows() -> None:
            predicted.update(predict_window(window, m.lr))
            write_token_rows(m, window, predicted, self.writer, self._replicas.micro)
            if self._write_samples:
                self._samples(m.world.deal(window.records), m.step, fraction)
            if not alone:
                shared.append(Recorded.of(m, window, predicted))

        def write_step() -> None:
            row = {**measured.summary(tokens, predicted), **extra}
            self.writer.step(row)
            self.last_row = row
            kept = [*STEP_METRICS, *(key for key in row if key.startswith("method_"))]
            line = {key: row[key] for key in kept if key in row}
            self._line = {**line, **self.alarm.update(row)}

        self._last = m.step
        failed = window.spoiled or self.guard.attempt("log", m.step, write_rows)
        whole = self.share(shared[0] if shared and not failed else None, m.step)
        if whole is not None:
            tokens, predicted = whole, whole.predicted
            measured = replace(m, **whole.parts)
        failed = failed or self.guard.attempt("log", m.step, write_step)
        self.check_writer(m.step)
        if failed:
            self.failed_step(m.step, failed)
        elif m.train and not math.isfinite(self.last_row["dH_train"]):
            self.guard.note("not_finite", m.step, "dH is not finite: NaN or infinite entropies")
        self._ring(m.step)

    def share(self, own: Recorded | None, step: int) -> Recorded | None:
        """What all replicas have recorded, for rank 0; None where this process is alone."""
        found: list[Recorded | None] = [None]
        if self._replicas.size > 1:
            self.guard.attempt("share", step, lambda: found.append(gathered(own, self._replicas)))
        return found[-1]

    def failed_step(self, step: int, kind: str) -> None:
        """A step of which only its event is known."""
        self.writer.forget_step()
        self._line = {"step": step, "probe_failed": kind}

    def _samples(self, own: Sequence[MicroRecord], step: int, fraction: float) -> None:
        """A row for every response that no earlier step has written one for."""
        for r in own:
            share = inclusion_prob(fraction, len(r.batch.mask))
            columns = to_rows.sample_columns(r.batch, step, share)
            new = self._responses.take(columns["uid"].tolist())
            self.writer.samples({name: values[new] for name, values in columns.items()})

    def _ring(self, step: int) -> None:
        alarm = Alarm.of(self._line or {})
        if alarm is not None and not self._ringing and self._on_alarm is not None:
            self.guard.attempt("on_alarm", step, partial(self._on_alarm, alarm))
        self._ringing = alarm is not None

    def times(self, probe: float, update: float) -> None:
        """Seconds of the step that was just taken; the loop's own go before these."""
        if self._line is not None:
            self._line |= {"time_probe": probe, "time_update": update}

    def commit(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """End the step: its line in metrics.jsonl, with the caller's values; {} without one."""
        if self._line is None:
            return {}
        line, self._line = {**self._line, **metrics}, None
        if self.ended:
            self.unlogged += 1
            return line
        if self.guard.attempt("log", line["step"], lambda: self.writer.commit(line)):
            self.check_writer(line["step"])
        self.cost.add(line)
        return line

    def check_writer(self, step: int) -> None:
        """Take note of a writer that takes no more."""
        if self.writer.broken and not self.ended:
            self.ended = True
            self.guard.note("log_ended", step, "nothing more is measured or logged in this run")

    def close(self, status: str | None = None) -> None:
        """Write what is left and give the run its status; None: as the process seems to end."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self.commit({})
        step = self._last
        ending = partial(self.writer.close, status=status or _status())
        self.guard.attempt("log", step, ending)
        if self.unlogged:
            self.guard.note("log_ended", step, f"{self.unlogged} later steps are not in the log")
        self.guard.close()
        if self._replicas.rank == 0 and self._tell_cost:
            self.guard.attempt("log", step, self._tell)

    def _tell(self) -> None:
        cost = self.cost.totals()
        if cost:
            update_info(self.writer.run_dir, probe_cost=cost)
        events = ", ".join(f"{kind} {n}" for kind, n in sorted(self.guard.counts.items()))
        also = f"events: {events} (in {self.writer.run_dir / 'events'})" if events else ""
        if text := "; ".join(filter(None, [reported(cost), also])):
            print(text, file=sys.stderr, flush=True)


def _status() -> str:
    """How a process ends that has not said it: by the error that it died of."""
    error = getattr(sys, "last_type", None)
    if error is None:
        return "finished"
    return "interrupted" if issubclass(error, KeyboardInterrupt) else "failed"
