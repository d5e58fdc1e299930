"""The collapse alarm: how fast entropy falls, when it will have halved, and where it comes from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from entropy_lab.stats import QUADRANTS

WINDOW = 24  # optimizer steps that the slope is fitted over
FEWEST = 8  # below this many, noise between minibatches passes for a slope
HORIZON = 100.0  # the alarm rings when entropy would halve within so many steps


def collapse_alarm(
    entropy: Sequence[float], changes: Sequence[Mapping[str, float]]
) -> dict[str, float | str | bool | None]:
    """What the last steps say: slope, steps until entropy halves, quadrant, and whether to ring.

    entropy: nats per token, one value an optimizer step, oldest first; changes: per measured step,
    each quadrant's share of the mean dH (nats per token; they add up to it).
    alarm_slope: least squares over the window, nats per token and step (None: too few steps).
    alarm_half_steps: half the fitted present entropy / -slope; None where the slope is not below
    zero by two standard errors. alarm_quadrant: the one whose summed dH is lowest, None where none
    is negative. alarm: entropy halves within 100 steps.
    """
    recent = [h for h in entropy if math.isfinite(h)][-WINDOW:]
    slope = half = None
    if len(recent) >= FEWEST:
        slope, error, now = _fit(recent)
        if slope < -2 * error and slope < 0:
            half = max(0.0, now) / 2 / -slope
    sums = {q: math.fsum(c.get(q, 0.0) for c in changes[-WINDOW:]) for q in QUADRANTS}
    lowest = min(QUADRANTS, key=lambda q: sums[q])
    return {
        "alarm": half is not None and half <= HORIZON,
        "alarm_slope": slope,
        "alarm_half_steps": half,
        "alarm_quadrant": lowest if sums[lowest] < 0 else None,
    }


@dataclass
class CollapseAlarm:
    """The recent history that `collapse_alarm` reads; JSON-able, for checkpoints."""

    entropy: list[float] = field(default_factory=list)
    changes: list[dict[str, float]] = field(default_factory=list)

    def update(self, row: Mapping[str, Any]) -> dict[str, float | str | bool | None]:
        """Add a row of the steps table; returns the metrics `alarm*`.

        Quadrant q adds share_q * dH_q; a step that was not probed adds its entropy only.
        """
        self.entropy = [*self.entropy, float(row["entropy_token_mean"])][-WINDOW:]
        nan = math.nan
        change = {q: row.get(f"share_{q}", nan) * row.get(f"dH_{q}", nan) for q in QUADRANTS}
        finite = {q: v for q, v in change.items() if math.isfinite(v)}
        self.changes = [*self.changes, finite][-WINDOW:]
        return collapse_alarm(self.entropy, self.changes)

    def to_dict(self) -> dict[str, Any]:
        return {"entropy": list(self.entropy), "changes": [dict(c) for c in self.changes]}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        return cls(list(saved.get("entropy", [])), [dict(c) for c in saved.get("changes", [])])


class Alarm(NamedTuple):
    """What a listener is told when the alarm begins to ring after an optimizer step."""

    step: int
    text: str
    half_steps: float
    slope: float
    quadrant: str | None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Self | None:
        """The alarm of a line of metrics.jsonl; None while it is quiet."""
        if not line.get("alarm"):
            return None
        keys = ("alarm_half_steps", "alarm_slope", "alarm_quadrant")
        return cls(int(line["step"]), alarm_text(line), *(line[k] for k in keys))


def alarm_text(line: Mapping[str, Any]) -> str:
    """The alarm of a line of metrics.jsonl in words; empty while it is quiet."""
    if not line.get("alarm"):
        return ""
    source = line.get("alarm_quadrant")
    where = f", mostly from {source}" if source else ""
    return f"entropy halves in about {line['alarm_half_steps']:.0f} steps{where}"


def log_alarm(alarm: Alarm) -> None:
    """Tell it as a warning of the logger "entropy_lab.alarm"."""
    logging.getLogger("entropy_lab.alarm").warning("step %d: %s", alarm.step, alarm.text)


def _fit(values: Sequence[float]) -> tuple[float, float, float]:
    """Least squares on 0, 1, 2, ...: (slope, its standard error, fitted last value)."""
    n = len(values)
    middle = (n - 1) / 2
    mean = math.fsum(values) / n
    spread = math.fsum((i - middle) ** 2 for i in range(n))
    slope = math.fsum((i - middle) * v for i, v in enumerate(values)) / spread
    left = math.fsum((v - mean - slope * (i - middle)) ** 2 for i, v in enumerate(values))
    return slope, math.sqrt(left / (n - 2) / spread), mean + slope * middle
