"""Figures of token rows show the numbers of their tables, and only those."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import AxesImage

from entropy_lab.analysis import analyze
from entropy_lab.analysis.tables import QUADRANTS
from entropy_lab.plots import make
from entropy_lab.plots.quadrants import LABELS
from entropy_lab.plots.style import power_of_ten, theme
from synthetic import PLANTED, write_run

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


def test_density_panels_show_every_bin_and_the_tables_slope(tables: Tables) -> None:
    figure = make("predicted_vs_actual", tables).figure
    panels = tables["density_panels"].set_index("predictor")
    shown = {a.get_title(loc="left"): a for a in figure.axes if a.get_title(loc="left")}
    assert list(shown) == list(PLANTED)
    for name, axes in shown.items():
        (image,) = (c for c in axes.get_children() if isinstance(c, AxesImage))
        counts = np.ma.filled(np.ma.masked_invalid(image.get_array()), 0)
        assert counts.sum() == panels.loc[name, "shown"]
        identity, best = axes.get_lines()
        assert slope(best) * ratio(axes, panels.loc[name]) == pytest.approx(
            panels.loc[name, "slope"]
        )
        assert slope(identity) * ratio(axes, panels.loc[name]) == pytest.approx(1)
        peak = np.unravel_index(counts.argmax(), counts.shape)
        row = tables["density"].query("predictor == @name").nlargest(1, "count").iloc[0]
        half = panels.loc[name, "y_range"]
        assert -half + (peak[0] + 0.5) * 2 * half / len(counts) == pytest.approx(row["y"])


def test_calibration_points_are_the_bins_of_the_table(tables: Tables, two: Tables) -> None:
    figure = make("calibration", tables).figure
    panels = tables["density_panels"].set_index("predictor")
    assert [a.get_title(loc="left") for a in figure.axes] == list(PLANTED)
    for axes, name in zip(figure.axes, PLANTED, strict=True):
        data = tables["calibration"].query("predictor == @name")
        x_scale, x_unit = power_of_ten(data["predicted"].abs().max())
        y_scale, y_unit = power_of_ten(data[["dH", "dH_lo", "dH_hi"]].abs().to_numpy().max())
        assert x_unit in axes.get_xlabel() and y_unit in axes.get_ylabel()
        identity, best, points = axes.get_lines()[:3]
        np.testing.assert_allclose(points.get_xdata() * x_scale, data["predicted"])
        np.testing.assert_allclose(points.get_ydata() * y_scale, data["dH"])
        assert slope(identity) * y_scale / x_scale == pytest.approx(1)
        assert slope(best) * y_scale / x_scale == pytest.approx(panels.loc[name, "slope"])
        ends = np.array(axes.collections[0].get_segments())[:, :, 1] * y_scale
        np.testing.assert_allclose(ends, data[["dH_lo", "dH_hi"]])
    titles = [a.get_title(loc="left") for a in make("calibration", two).figure.axes]
    assert titles == [f"{run} · {p}" for run in ("grpo", "steer") for p in PLANTED]
    alone = {k: v[v["predictor"] == "steer"] for k, v in tables.items() if "predictor" in v}
    assert len(make("calibration", alone).figure.axes) == 1


def test_changes_under_two_floors_are_a_grey_band_and_marked_regions(tables: Tables) -> None:
    panels = tables["density_panels"]
    assert not make("predicted_vs_actual", tables).figure.axes[0].patches
    floor = panels["y_range"].max() / 8
    noisy = tables | {"density_panels": panels.assign(floor=floor)}
    drawing = make("predicted_vs_actual", noisy)
    assert "$" not in drawing.caption
    assert f"|dH| under two noise floors ({2 * floor:.2g} nats)" in drawing.caption
    (band,) = drawing.figure.axes[0].patches
    scale, _ = power_of_ten(panels["y_range"].iloc[0])
    ends = [band.get_y() * scale, (band.get_y() + band.get_height()) * scale]
    np.testing.assert_allclose(ends, [-2 * floor, 2 * floor])
    quiet = make("predicted_vs_actual", tables | {"density_panels": panels.assign(floor=1e-9)})
    assert "less than the bin around 0" in quiet.caption
    share = tables["regions"]["bin"].map(lambda name: 0.6 if name == "p[0,0.1)" else 0.4)
    drawing = make("regions", tables | {"regions": tables["regions"].assign(under_floor=share)})
    labels = [t.get_text() for axes in drawing.figure.axes[2:] for t in axes.get_xticklabels()]
    assert [t for t in labels if "†" in t] == ["0–0.1\n†"]
    assert "†: more than half" in drawing.caption
    assert "†" not in make("regions", tables).caption


def slope(line) -> float:
    (x0, x1), (y0, y1) = line.get_data()
    return (y1 - y0) / (x1 - x0)


def ratio(axes, panel) -> float:
    """Units of dH per unit of prediction: each axis is divided by its own power of ten."""
    return (panel["y_range"] / axes.get_ylim()[1]) / (panel["x_range"] / axes.get_xlim()[1])


def test_curves_are_the_columns_of_the_table(tables: Tables) -> None:
    figure = make("entropy_reward", tables).figure
    entropy, reward, change = figure.axes
    curves = tables["curves"]
    for axes, raw, smooth in (
        (entropy, "entropy_token_mean", "entropy_smooth"),
        (reward, "reward", "reward_smooth"),
    ):
        faint, strong = axes.get_lines()
        np.testing.assert_allclose(faint.get_ydata(), curves[raw])
        np.testing.assert_allclose(strong.get_ydata(), curves[smooth])
    scale, unit = power_of_ten(curves["dH_train"].abs().quantile(0.95))
    assert unit in change.get_ylabel()
    np.testing.assert_allclose(change.get_lines()[1].get_ydata() * scale, curves["dH_train"])


def test_quadrant_bars_are_contributions_with_their_intervals(tables: Tables) -> None:
    figure = make("quadrants", tables).figure
    data = tables["quadrants"].query("quantity == 'dH'").set_index("quadrant")
    axes = figure.axes[0]
    scale, _ = power_of_ten(
        data[["contribution", "contribution_lo", "contribution_hi"]].abs().to_numpy().max()
    )
    widths = [bar.get_width() * scale for bar in axes.patches]
    np.testing.assert_allclose(widths, data.loc[list(QUADRANTS), "contribution"])
    segments = np.array(axes.collections[0].get_segments())[:, :, 0] * scale
    bounds = data.loc[list(QUADRANTS), ["contribution_lo", "contribution_hi"]]
    np.testing.assert_allclose(segments, bounds)
    assert tuple(LABELS) == QUADRANTS


def test_regions_show_means_and_shares_of_the_table(tables: Tables) -> None:
    figure = make("regions", tables).figure
    data = tables["regions"].query("axis == 'probability'")
    mean, share = figure.axes[0], figure.axes[2]
    _, unit = power_of_ten(tables["regions"][["dH", "dH_lo", "dH_hi"]].abs().to_numpy().max())
    assert unit in mean.get_ylabel()
    drawn = np.array(mean.get_lines()[0].get_ydata())
    np.testing.assert_allclose(drawn / drawn[0], data["dH"] / data["dH"].iloc[0])
    heights = [bar.get_height() for bar in share.patches]
    np.testing.assert_allclose(heights, [*data["share"], *data["abs_share"]])


def test_several_runs_stand_beside_each_other(two: Tables) -> None:
    figure = make("quadrants", two).figure
    assert [a.get_title(loc="left") for a in figure.axes] == ["grpo", "steer"]
    figure = make("predicted_vs_actual", two).figure
    titles = [a.get_title(loc="left") for a in figure.axes if a.get_title(loc="left")]
    assert titles == [f"{run} · {p}" for run in ("grpo", "steer") for p in PLANTED]
    titles = [a.get_title(loc="left") for a in make("regions", two).figure.axes]
    assert [t.split()[0] for t in titles] == ["grpo", "grpo", "steer", "steer"]
