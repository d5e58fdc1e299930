"""Figures show the numbers of their tables, and only those."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import AxesImage
from PIL import Image

from entropy_lab.analysis import analyze, read_tables
from entropy_lab.analysis.replay import pairs
from entropy_lab.analysis.store import write_tables
from entropy_lab.analysis.tables import QUADRANTS
from entropy_lab.analysis.tables_runs import OF_SEVERAL
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.plots import PLOTS, draw, make, svg
from entropy_lab.plots.quadrants import LABELS
from entropy_lab.plots.style import (
    METHODS,
    add_caption,
    columns_for,
    method_style,
    power_of_ten,
    significant,
    theme,
)
from synthetic import PLANTED, write_run

Tables = dict[str, pd.DataFrame]


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    with theme("light"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plots") / "run"
    write_run(path, steps=12)
    analyze([path])
    return path


@pytest.fixture(scope="module")
def tables(run: Path) -> Tables:
    return analyze([run]).tables


@pytest.fixture(scope="module")
def deep_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deep") / "run"
    write_run(path, steps=12, deep_every=2, held_out=False)
    analyze([path])
    return path


@pytest.fixture(scope="module")
def over_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    for method, seeds in (("grpo", 3), ("steer", 2), ("opo", 1)):
        for seed in range(seeds):
            ends = 0.1 + 0.02 * seed + 0.1 * (method == "steer")
            write_run(
                folder / f"{method}-{seed}", method=method, seed=seed, steps=12, probed=False,
                entropy=(0.5, ends),
            )  # fmt: skip
    return analyze(sorted(folder.iterdir())).out


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four states; method b lowers entropy by 1e-3 more than grpo at each, c by as much."""
    rows = pd.DataFrame(
        [
            {"run": "r", "method": m, "own": m == "grpo", "point": p, "inner": 0,
             "kl": 1e-4 * (p + 1),
             "dH_train": -3e-3 - 1e-3 * (m == "b") + 1e-4 * p * (m == "c") - 1e-3 * p,
             "dH_heldout": -2e-3}
            for m in ("grpo", "b", "c") for p in range(4)
        ]
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("replay")
    found = pairs(rows, "grpo").assign(run="r")
    write_tables(folder, {"replay": rows, "replay_pairs": found})
    return folder


@pytest.fixture(scope="module")
def all_tables(deep_run: Path, over_seeds: Path, replayed: Path, tables: Tables) -> Tables:
    deep = {table for plot in PLOTS.values() if plot.deep for table in plot.needs}
    more = read_tables([over_seeds], OF_SEVERAL) | read_tables([replayed], ["replay_pairs"])
    return tables | read_tables([deep_run], deep) | more


def test_the_replay_figure_shows_the_paired_differences(all_tables: Tables) -> None:
    own = make("replay", all_tables).figure.axes[0]
    assert [t.get_text() for t in own.get_yticklabels()] == ["b", "c"]  # sorted, no baseline
    points = [line.get_xdata()[0] for line in own.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(points, [-1.0, 0.15])  # of 1e-3 nats


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


@pytest.mark.parametrize("name", PLOTS)
def test_captions_end_inside_the_figure_in_any_font(all_tables: Tables, name: str) -> None:
    for font in ("DejaVu Sans", "DejaVu Sans Mono"):  # both come with matplotlib; one is wide
        with mpl.rc_context({"font.family": font}):
            drawing = make(name, all_tables)
            add_caption(drawing)
            text = drawing.figure.texts[-1]
            right = text.get_window_extent().x1 / drawing.figure.dpi
            assert right <= drawing.figure.get_figwidth(), font


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


@pytest.mark.parametrize("name", PLOTS)
def test_captions_say_how_many_rows_and_what_is_resampled(all_tables: Tables, name: str) -> None:
    caption = make(name, all_tables).caption
    assert "$" not in caption  # it is plain text in the report
    assert "n = " in caption
    units = {"entropy_reward": "the run", "drift": "the run is the unit"}
    units["replay"] = "bootstrap over replay points"
    units |= dict.fromkeys(("methods_curves", "methods_summary"), "bootstrap over seeds within a")
    assert units.get(name, "two-stage bootstrap: steps, then prompt") in caption


@pytest.mark.parametrize("name", PLOTS)
def test_figures_need_only_their_tables_and_embed_their_fonts(
    deep_run: Path, over_seeds: Path, replayed: Path, all_tables: Tables, tmp_path: Path, name: str
) -> None:
    make(name, {table: all_tables[table] for table in PLOTS[name].needs})
    folder = replayed if name == "replay" else deep_run
    pdf, png = draw(name, over_seeds if name.startswith("methods_") else folder, tmp_path)
    assert b"/FontFile2" in pdf.read_bytes()  # TrueType, not Type 3
    with Image.open(png) as image:
        assert image.width > 1000
        colours = image.convert("RGB").getcolors(2**24)
    assert colours is not None and len(colours) > 20  # not an empty page


def test_equal_tables_give_equal_files(run: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw("quadrants", run, tmp_path / folder, ("pdf", "svg"))
    for ending in ("pdf", "svg"):
        one, two = (tmp_path / f / f"quadrants.{ending}" for f in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


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


def test_several_runs_stand_beside_each_other(two: Tables) -> None:
    figure = make("quadrants", two).figure
    assert [a.get_title(loc="left") for a in figure.axes] == ["grpo", "steer"]
    figure = make("predicted_vs_actual", two).figure
    titles = [a.get_title(loc="left") for a in figure.axes if a.get_title(loc="left")]
    assert titles == [f"{run} · {p}" for run in ("grpo", "steer") for p in PLANTED]
    titles = [a.get_title(loc="left") for a in make("regions", two).figure.axes]
    assert [t.split()[0] for t in titles] == ["grpo", "grpo", "steer", "steer"]


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


def test_errors_name_the_figure_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown figure 'quadrant': did you mean 'quadrants'"):
        draw("quadrant", tmp_path, tmp_path)
    write_run(tmp_path / "run", steps=3, probed=False)
    with pytest.raises(RunError, match="is not analyzed yet: run `entropy-lab analyze"):
        draw("quadrants", tmp_path / "run", tmp_path)
    analyze([tmp_path / "run"])
    with pytest.raises(RunError, match="needs rows in quadrants.parquet and it has none"):
        draw("quadrants", tmp_path / "run", tmp_path)
    with pytest.raises(RunError, match="has no methods.parquet: make it .* of several runs"):
        draw("methods_summary", tmp_path / "run", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write entropy_reward"):
        draw("entropy_reward", tmp_path / "run", tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23"), (-0.5, "−0.5"), (6.6e4, r"6.6$\times 10^{4}$"), (float("nan"), "–")],
)
def test_labels_have_three_digits(value: float, text: str) -> None:
    assert significant(value) == text
