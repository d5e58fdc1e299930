"""The collapse alarm on histories whose answer is known by hand."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from entropy_lab.probe.alarm import CollapseAlarm, collapse_alarm
from entropy_lab.stats import QUADRANTS


def steps_row(entropy: float, **change: float) -> dict[str, float]:
    row = {"entropy_token_mean": entropy}
    for name in QUADRANTS:
        row[f"share_{name}"] = 0.25
        row[f"dH_{name}"] = change.get(name, 0.0)
    return row


def test_a_straight_fall_is_extrapolated() -> None:
    out = collapse_alarm([1.0 - 0.01 * i for i in range(20)], [])
    assert out["alarm_slope"] == pytest.approx(-0.01, rel=1e-9)
    # 0.81 nats now: half of it is lost in 0.405 / 0.01 steps.
    assert out["alarm_half_steps"] == pytest.approx(40.5, rel=1e-9)
    assert out["alarm"] is True and out["alarm_quadrant"] is None


def test_a_slow_fall_is_reported_but_does_not_ring() -> None:
    out = collapse_alarm([1.0 - 0.001 * i for i in range(20)], [])
    assert out["alarm_half_steps"] == pytest.approx(490.5, rel=1e-6) and out["alarm"] is False


def test_slope_is_least_squares_over_the_window() -> None:
    rng = random.Random(0)
    history = [5.0, 9.0, 1.0] + [0.5 + rng.gauss(0, 0.1) for _ in range(24)]
    slope = np.polyfit(np.arange(24), history[-24:], 1)[0]
    assert collapse_alarm(history, [])["alarm_slope"] == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("history", [[0.5] * 24, [0.5 + 0.01 * i for i in range(24)]])
def test_flat_or_rising_entropy_never_halves(history: list[float]) -> None:
    out = collapse_alarm(history, [])
    assert out["alarm_half_steps"] is None and out["alarm"] is False


def test_noise_alone_rarely_rings() -> None:
    rings = 0
    for seed in range(200):
        rng = random.Random(seed)
        history = [0.5 + rng.gauss(0, 0.05) for _ in range(24)]
        rings += bool(collapse_alarm(history, [])["alarm"])
    assert rings <= 14  # two standard errors, one side: about 3 %


def test_too_few_steps_say_nothing() -> None:
    out = collapse_alarm([1.0, 0.5, 0.2], [{"pos_likely": -0.1}])
    assert out["alarm_slope"] is None and out["alarm"] is False
    assert out["alarm_quadrant"] == "pos_likely"
    assert collapse_alarm([], [])["alarm"] is False


def test_the_quadrant_is_the_one_with_the_lowest_sum() -> None:
    changes = [{"pos_likely": -0.01, "neg_unlikely": -0.02}] * 3 + [{"pos_likely": -0.1}]
    assert collapse_alarm([1.0] * 9, changes)["alarm_quadrant"] == "pos_likely"
    assert collapse_alarm([1.0] * 9, [{"pos_likely": 0.01}])["alarm_quadrant"] is None


def test_rows_are_weighted_by_share_and_unprobed_steps_only_add_entropy() -> None:
    alarm = CollapseAlarm()
    row = steps_row(1.0, pos_likely=-1.0, zero=-2.0)
    row["share_zero"] = 0.1  # 0.1 * -2 is less of a fall than 0.25 * -1
    assert alarm.update(row)["alarm_quadrant"] == "pos_likely"
    unprobed = {k: math.nan if k.startswith("dH_") else v for k, v in row.items()}
    alarm.update(unprobed)
    out = alarm.update({"entropy_token_mean": 0.9})
    assert out["alarm_quadrant"] == "pos_likely" and len(alarm.entropy) == 3


def test_history_is_bounded_and_survives_json() -> None:
    rng, whole, saved = random.Random(1), CollapseAlarm(), CollapseAlarm()
    for _ in range(60):
        row = steps_row(rng.random(), neg_likely=rng.gauss(0, 1))
        saved = CollapseAlarm.from_dict(json.loads(json.dumps(saved.to_dict())))
        assert whole.update(row) == saved.update(row)
    assert len(whole.entropy) == len(whole.changes) == 24
    assert CollapseAlarm.from_dict({}) == CollapseAlarm()
