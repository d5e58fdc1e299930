"""Every figure is drawn whole or says what to record, whatever runs it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from entropy_lab.plots import PLOTS, attempt, sheet
from entropy_lab.plots.style import Drawing, theme
from made_tables import (
    Tables,
    aimed,
    audited,
    layered,
    one_run,
    replayed,
    several_runs,
    without_dh,
)
from picture import bad_texts, empty_panels, overlaps


def _two(folder: Path) -> Tables:
    found = several_runs(folder, {"grpo": 1, "steer": 1})
    both = [audited(r) | aimed(r) | layered(r) for r in ("grpo-0", "steer-0")]
    return found | {k: pd.concat([t[k] for t in both]) for k in both[0]} | replayed()


def _five(folder: Path) -> Tables:
    arms = {"grpo": 5, "steer lambda_min=0.5": 2, "steer lambda_min=0.9": 2}
    return several_runs(folder, arms) | audited("grpo-0") | aimed("grpo-0") | layered("grpo-0")


def _imported(folder: Path) -> Tables:
    one_run(folder / "run")
    return without_dh(folder / "imported", folder / "run")


SITUATIONS: dict[str, Callable[[Path], Tables]] = {
    "two runs": _two,
    "five seeds": _five,
    "no deep step": lambda folder: one_run(folder / "run", deep_every=0) | audited(),
    "imported": _imported,
    "one step": lambda folder: one_run(folder / "run", steps=1, deep_every=1) | aimed(steps=1),
    "no clipped token": lambda folder: one_run(folder / "run") | audited(touched=0.0),
}
LAID_OUT = ("two runs", "one step")
# Explained, not drawn: everything that needs a measured change, deep steps, or several runs.
NEVER = {"mapping", "extreme_clipping", "clip_sweep", "scope_runs"}  # no synthetic arm has these


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    with theme("light"):
        yield


@pytest.fixture(scope="module")
def tables_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tables]:
    return cache(lambda name: SITUATIONS[name](tmp_path_factory.mktemp("edge")))


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", PLOTS)
def test_a_figure_is_whole_or_names_the_command(
    tables_of: Callable[[str], Tables], name: str, situation: str
) -> None:
    tables = tables_of(situation)
    found = attempt(name, tables)
    if isinstance(found, str):
        assert "entropy-lab " in found or "python -m experiments" in found
        assert "\n" not in found and len(found) < 400
        return
    assert not empty_panels(found.figure)
    assert not bad_texts(found.figure)
    if situation in LAID_OUT:  # laying out takes most of the time
        assert not overlaps(found.figure)
    assert "n = " in found.caption and "nan" not in found.caption.lower()
    table = sheet(name, tables)
    if table is not None:
        assert len(table.cells()) and not any("nan" in c for row in table.cells() for c in row)


@pytest.mark.parametrize(
    ("situation", "drawn"),
    [
        ("two runs", set(PLOTS) - NEVER - {"lambda_min"}),
        ("five seeds", set(PLOTS) - NEVER - {"replay"}),
        ("imported", {"entropy_reward"}),
    ],
)
def test_what_can_be_drawn_is_drawn(
    tables_of: Callable[[str], Tables], situation: str, drawn: set[str]
) -> None:
    tables = tables_of(situation)
    found = {name for name in PLOTS if isinstance(attempt(name, tables), Drawing)}
    assert found == drawn


def test_a_panel_without_points_and_a_text_of_nan_would_be_seen() -> None:
    from entropy_lab.plots.style import new_figure

    figure = new_figure(4, 2)
    one, two = figure.subplots(1, 2)
    one.plot([np.nan], [1.0])
    two.plot([0.5], [1.0], "o")
    two.set_title("mean nan")
    figure.add_axes((0.5, 0.3, 0.4, 0.5)).plot([0], [0], "o")
    assert empty_panels(figure) == [""] and bad_texts(figure) == ["mean nan"]
    assert overlaps(figure)
    two.get_lines()[0].set_marker("")
    assert empty_panels(figure) == ["", "mean nan"]  # one point of a line is no picture
