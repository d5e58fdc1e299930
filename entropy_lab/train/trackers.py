"""Experiment trackers beside metrics.jsonl: one door, and no way for a tracker to stop a run."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from entropy_lab.probe.alarm import alarm_text
from entropy_lab.record.evals import read_evals
from entropy_lab.record.manifest import read_info, update_info
from entropy_lab.train.config import Config
from entropy_lab.train.settings import TrackerConfig

Numbers = Mapping[str, float]


class Start(NamedTuple):
    """What a tracker is opened with; id names the same run again after a resume at `step`."""

    id: str
    name: str
    project: str
    settings: dict[str, Any]
    run_dir: Path
    step: int


class Tracker(Protocol):
    """Takes numbers by optimizer step, in the order of steps, and texts to be read now."""

    def log(self, step: int, values: Numbers) -> None: ...
    def alert(self, step: int, title: str, text: str) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard; those of steps that a resume repeats are hidden."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = start.step if start.step else None
        self._writer = SummaryWriter(str(start.run_dir / "tensorboard"), purge_step=purge)
        if not start.step:
            self._writer.add_text("settings", str(start.settings), 0)

    def log(self, step: int, values: Numbers) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def alert(self, step: int, title: str, text: str) -> None:
        self._writer.add_text(title, text, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, start: Start) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=start.project,
            name=start.name,
            id=start.id,
            resume="allow",
            dir=str(start.run_dir),
            config=start.settings,
        )

    def log(self, step: int, values: Numbers) -> None:
        # A resumed run repeats steps with the same values; W&B takes each step once.
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        self._run.alert(title=title, text=f"step {step}: {text}")

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio's local database; a resumed run is found by its name."""

    def __init__(self, start: Start) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio = trackio
        name = f"{start.name}-{start.id}"
        trackio.init(project=start.project, name=name, config=start.settings, resume="allow")

    def log(self, step: int, values: Numbers) -> None:
        self._trackio.log(dict(values), step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        self._trackio.alert(title=title, text=f"step {step}: {text}")

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Callable[[Start], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Tracking:
    """What the loop tells of its steps, to a tracker or to none.

    The first failure of the tracker is one warning, and the run goes on without it.
    """

    def __init__(self, config: Config, run_dir: Path, step: int) -> None:
        self._name, self._run_dir = config.tracker.name, run_dir
        self._tracker: Tracker | None = None
        self._evaluated = step - 1  # evaluations of policies of so many steps were told of
        self._rang = False
        if self._name != "none":
            self._try(lambda: self._open(config, step))
        if step:  # what TensorBoard hides of the steps from here on
            self._evaluations(step)

    def step(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: its numbers, evaluations since the last, and a new alarm."""
        step = int(line["step"])
        if line.get("time_eval"):
            self._evaluations(step)
        self._try(lambda: self._log(step, numbers(line)))
        text = alarm_text(line)
        if text and not self._rang:
            self._try(lambda: self._alert(step, text))
        self._rang = bool(text)
        if line.get("time_eval"):
            self._evaluations(step + 1)

    def close(self) -> None:
        if self._tracker is not None:
            self._try(self._tracker.close)

    def _open(self, config: Config, step: int) -> None:
        known = read_info(self._run_dir).get("tracker_run")
        id = known or secrets.token_hex(4)
        if known is None:
            update_info(self._run_dir, tracker_run=id)
        project, settings = config.tracker.project, config.to_dict()
        start = Start(id, config.run.name, project, settings, self._run_dir, step)
        self._tracker = TRACKERS[self._name](start)

    def _log(self, step: int, values: Numbers) -> None:
        if self._tracker is not None and values:
            self._tracker.log(step, values)

    def _alert(self, step: int, text: str) -> None:
        if self._tracker is not None:
            self._tracker.alert(step, "entropy collapse", text)

    def _evaluations(self, through: int) -> None:
        """Hand over the evaluations of policies of up to `through` steps that are still untold."""
        if self._tracker is None:
            return
        table = read_evals(self._run_dir)
        found: dict[int, dict[str, Any]] = {}
        for row in table.to_pylist() if table is not None else []:
            if self._evaluated < row["step"] <= through:
                values = found.setdefault(row["step"], {})
                prefix = f"eval/{row['benchmark']}"
                values |= {f"{prefix}/{k}": row[k] for k in ("avg_at_k", "entropy")}
                values[f"{prefix}/pass_at_{row['k']}"] = row["pass_at_k"]
        for step in sorted(found):
            self._try(lambda step=step: self._log(step, numbers(found[step])))
        self._evaluated = max(self._evaluated, through)

    def _try(self, action: Callable[[], None]) -> None:
        # Whatever a tracker raises, from no network to a login that is missing, training goes on.
        try:
            action()
        except Exception as error:
            self._tracker = None
            extra = " (pip install 'entropy-lab[track]')" if isinstance(error, ImportError) else ""
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(
                f"warning: {self._name} failed and is left out from here on: {reason}{extra}; "
                "metrics.jsonl has everything",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def open_tracker(config: Config, run_dir: Path, step: int) -> Iterator[Tracking]:
    """The tracker of `[tracker]` for a run that is at optimizer step `step`; closed at the end."""
    tracking = Tracking(config, run_dir, step)
    try:
        yield tracking
    finally:
        tracking.close()


def untold(config: Config) -> Config:
    """The settings of a rank that tells no tracker: the first one does."""
    return replace(config, tracker=TrackerConfig())


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line, truth values as 0 and 1; `step` is the axis."""
    found = {k: float(v) for k, v in line.items() if isinstance(v, int | float) and k != "step"}
    return {k: v for k, v in found.items() if math.isfinite(v)}
