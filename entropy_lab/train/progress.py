"""Live progress on a terminal; elsewhere a plain line at every fifth of the way."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from entropy_lab.probe.alarm import alarm_text
from entropy_lab.train.config import Config

_FIFTHS = 5


class Progress:
    """Shows warm-up and training; a context manager. Writes to stderr unless given a console."""

    def __init__(self, run_dir: Path, config: Config, console: Console | None = None) -> None:
        rollout, minibatches = config.rollout, config.train.minibatches
        self.console = console or Console(stderr=True)
        self.title = f"{config.run.name} · {config.method.name} → {run_dir}"
        self._responses = rollout.prompts * rollout.group_size // minibatches
        self._seconds: deque[float] = deque(maxlen=20)
        self._live: Live | None = None
        self._fifth = -1
        self._said: set[str] = set()
        self._evaluated = ""
        self._warmup_started = time.perf_counter()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(Text(self.title), console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def warmup(self, done: int, total: int, loss: float) -> None:
        """Iterations of the warm-up: shown while the model is made, which happens once."""
        if done == 1:
            self._warmup_started = time.perf_counter()
        spent = time.perf_counter() - self._warmup_started
        left = spent / max(1, done - 1) * (total - done)
        text = f"making the model (kept for the next run) {done}/{total} · loss {loss:.3f} nats"
        self._show(done, total, f"{text} · {_clock(left)} left", "")
        if done == total:
            self._fifth = -1

    def say(self, line: str) -> None:
        """A line that stays, above the live ones."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def say_once(self, texts: Mapping[str, str]) -> None:
        """A line for each kind that has not been told before."""
        for kind in (k for k in texts if k not in self._said):
            self.say(texts[kind])
        self._said |= texts.keys()

    def evaluated(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of evals.parquet: the largest k of each benchmark stays in the line."""
        last = {row["benchmark"]: row for row in sorted(rows, key=lambda row: row["k"])}
        self._evaluated = "".join(
            f" · {name} avg@{row['samples']} {row['avg_at_k']:.3f} pass@{row['k']} "
            f"{row['pass_at_k']:.3f}"
            for name, row in last.items()
        )

    def step(self, metrics: Mapping[str, Any], step: int, total: int) -> None:
        """One line of metrics after optimizer step `step` of `total` (counted from 1)."""
        self._seconds.append(float(metrics["time_step"]))
        left = sum(self._seconds) / len(self._seconds) * (total - step)
        self._show(
            step,
            total,
            f"{self._numbers(metrics, step, total)}{self._evaluated} · {_clock(left)} left",
            alarm_text(metrics),
        )

    def _numbers(self, metrics: Mapping[str, Any], step: int, total: int) -> str:
        tokens = float(metrics["response_length"]) * self._responses
        speed = tokens / max(float(metrics["time_step"]), 1e-9)
        return (
            f"step {step}/{total} · reward {_number(metrics['reward'], '.3f')} · entropy "
            f"{_number(metrics['entropy_token_mean'], '.3f')} · dH "
            f"{_number(metrics.get('dH_train'), '+.1e')} · {speed:,.0f} tokens/s"
        )

    def _show(self, done: int, total: int, text: str, warning: str) -> None:
        if self._live is not None:
            lines: list[Any] = [Text(self.title, style="bold")]
            bar = Table.grid()  # a bar alone would not end its line
            bar.add_row(ProgressBar(total=total, completed=done, width=60))
            lines += [bar, Text(text)]
            if warning:
                lines.append(Text(warning, style="bold red"))
            self._live.update(Group(*lines))
            return
        fifth = done * _FIFTHS // total
        if fifth != self._fifth and fifth > 0:
            self.console.print(
                f"{text} · {warning}" if warning else text, soft_wrap=True, highlight=False
            )
        self._fifth = fifth


def _number(value: Any, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(float(value), form)


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"
