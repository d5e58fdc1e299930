"""One look: colours, dashes, scales, labels and themes."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest

from entropy_lab.analysis import analyze
from entropy_lab.interventions import INTERVENTIONS
from entropy_lab.plots import make, svg
from entropy_lab.plots.style import (
    METHODS,
    columns_for,
    method_style,
    power_of_ten,
    significant,
    theme,
)
from synthetic import write_run

Tables = dict[str, pd.DataFrame]


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    with theme("light"):
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    path = tmp_path_factory.mktemp("tokens") / "run"
    write_run(path, steps=12)
    return analyze([path]).tables


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = tmp_path_factory.mktemp("two")
    for method in ("grpo", "steer"):
        write_run(folder / method, steps=8, method=method)
    return analyze([folder / "grpo", folder / "steer"]).tables


def test_a_method_has_one_colour_everywhere(two: Tables) -> None:
    entropy = make("entropy_reward", two).figure.axes[0]
    strong = {line.get_label(): line.get_color() for line in entropy.get_lines()}
    for method in ("grpo", "steer"):
        assert strong[method] == method_style(method)["color"]
    alone = {k: v[v["run"] == "steer"] for k, v in two.items() if "run" in v}
    line = make("entropy_reward", alone).figure.axes[0].get_lines()[1]
    assert line.get_color() == strong["steer"]
    styles = [tuple(map(str, method_style(m).values())) for m in METHODS]
    assert len(set(styles)) == len(METHODS)
    assert method_style("somebody's own") == method_style("somebody's own")
    assert sorted(METHODS) == sorted(INTERVENTIONS)  # every method has a look of its own
    assert method_style("steer:lambda_min=0.5")["color"] == method_style("steer")["color"]


def test_the_dark_theme_differs_and_leaves_no_trace(tables: Tables) -> None:
    with theme("light"):
        light = svg(make("regions", tables))
    with theme("dark"):
        dark = svg(make("regions", tables))
    assert "#16191d" in dark and "#16191d" not in light
    with theme("light"):
        assert svg(make("regions", tables)) == light


@pytest.mark.parametrize(
    ("panels", "columns"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (6, 3), (7, 4), (8, 4)]
)
def test_grids_leave_few_gaps(panels: int, columns: int) -> None:
    assert columns_for(panels) == columns


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(3e-3, (1e-3, "$10^{-3}$ nats")), (0.5, (1.0, "nats")), (0.0, (1.0, "nats"))],
)
def test_axes_are_scaled_by_a_power_of_ten(largest: float, expected: tuple[float, str]) -> None:
    assert power_of_ten(largest) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23"), (-0.5, "−0.5"), (6.6e4, r"6.6$\times 10^{4}$"), (float("nan"), "–")],
)
def test_labels_have_three_digits(value: float, text: str) -> None:
    assert significant(value) == text
