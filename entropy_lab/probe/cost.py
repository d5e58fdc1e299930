"""What a probe has cost: the seconds in it beside those of the updates and of the whole loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Cost:
    """Sums over the committed steps. share: seconds in the probe over seconds of the updates (from
    the first record of a step to the end of its optimizer step) without them."""

    def __init__(self) -> None:
        self._probe = self._update = 0.0
        self._started: float | None = None

    def begin(self) -> None:
        """The loop has started: called with the first record."""
        self._started = self._started or time.perf_counter()

    def add(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl with time_probe and time_update, s."""
        self._probe += float(line.get("time_probe") or 0.0)
        self._update += float(line.get("time_update") or 0.0)

    def totals(self) -> dict[str, float]:
        """share, share_of_run, probe_s, update_s, run_s (the last two without the probe's
        seconds); {} before the first step."""
        update = self._update - self._probe
        if self._started is None or update <= 0:
            return {}
        found = shares(self._probe, update)
        run = time.perf_counter() - self._started - self._probe
        return {**found, "run_s": run, "share_of_run": self._probe / run} if run > 0 else found


def shares(probe: float, update: float) -> dict[str, float]:
    """share, probe_s, update_s for seconds in the probe and of the updates without them."""
    return {"share": probe / update, "probe_s": probe, "update_s": update}


def reported(cost: Mapping[str, Any]) -> str:
    """The measured cost as one line; empty where there is none."""
    if not cost:
        return ""
    whole = f"; {cost['share_of_run']:.0%} of the whole loop" if "share_of_run" in cost else ""
    return (
        f"probe: measured {cost['share']:.0%} on top of the updates ({cost['probe_s']:.1f} s "
        f"beside {cost['update_s']:.1f} s){whole}"
    )
