"""Progress: a few plain lines for logs, a live display for terminals."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from entropy_lab.probe.alarm import alarm_text
from entropy_lab.train.config import load_config
from entropy_lab.train.progress import Progress

CALM = {
    "reward": 0.25,
    "entropy_token_mean": 0.5,
    "dH_train": -1.2e-3,
    "response_length": 8.5,
    "time_step": 0.5,
    "alarm": False,
}
ALARM = {**CALM, "alarm": True, "alarm_half_steps": 37.6, "alarm_quadrant": "pos_likely"}


def shown(terminal: bool) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, color_system=None)
    return Progress(Path("runs/demo"), load_config(), console), out


def test_a_log_gets_one_line_at_each_fifth() -> None:
    progress, out = shown(terminal=False)
    with progress:
        for step in range(1, 121):
            progress.step(CALM, step, 120)
    lines = out.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == [f"step {24 * k}/120" for k in range(1, 6)]
    # 128 responses of 8.5 tokens in half a second; 96 steps left.
    assert lines[0] == (
        "step 24/120 · reward 0.250 · entropy 0.500 · dH -1.2e-03 · 2,176 tokens/s · 0:48 left"
    )


def test_a_continued_run_counts_its_own_speed() -> None:
    progress, out = shown(terminal=False)
    progress.step(CALM, 95, 120)
    progress.step(CALM, 96, 120)
    assert "step 96/120" in out.getvalue() and "0:12 left" in out.getvalue()


def test_the_warm_up_is_shown_and_training_starts_anew() -> None:
    progress, out = shown(terminal=False)
    for done in range(1, 701):
        progress.warmup(done, 700, 1.5)
    progress.step(CALM, 24, 120)
    lines = out.getvalue().splitlines()
    assert len(lines) == 6 and lines[0].startswith("making the model (kept for the next run) 140/")
    assert "loss 1.500 nats" in lines[0] and lines[-1].startswith("step 24/120")


def test_a_terminal_shows_the_last_step_and_the_alarm() -> None:
    progress, out = shown(terminal=True)
    with progress:
        progress.step(CALM, 1, 120)
        progress.step(ALARM, 120, 120)
    text = out.getvalue()
    assert "demo · grpo → runs/demo" in text and "step 120/120" in text
    assert "entropy halves in about 38 steps, mostly from pos_likely" in text


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_was_not_measured_is_a_dash(missing: float | None) -> None:
    progress, out = shown(terminal=False)
    progress.step({**CALM, "dH_train": missing, "reward": missing}, 120, 120)
    assert "reward – · entropy 0.500 · dH – ·" in out.getvalue()


def test_the_alarm_in_words() -> None:
    assert alarm_text(CALM) == "" and alarm_text({}) == ""
    assert alarm_text({**ALARM, "alarm_quadrant": None}) == "entropy halves in about 38 steps"
    progress, out = shown(terminal=False)
    progress.step(ALARM, 120, 120)
    assert out.getvalue().rstrip().endswith("mostly from pos_likely")
