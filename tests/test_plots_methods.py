"""Figures over methods and seeds show the numbers of their tables, and only those."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex

from entropy_lab.analysis import analyze
from entropy_lab.plots import make
from entropy_lab.plots.style import METHODS, method_style, theme
from synthetic import write_run

Tables = dict[str, pd.DataFrame]


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    with theme("light"):
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = tmp_path_factory.mktemp("methods")
    for method, seeds in (("grpo", 3), ("steer", 2), ("opo", 1)):
        for seed in range(seeds):
            write_run(
                folder / f"{method}-{seed}", method=method, seed=seed, steps=14, groups=2,
                group_size=2, length=2, entropy=(0.5, 0.1 + 0.03 * seed), drift=-0.03,
            )  # fmt: skip
    order = [p for name in ("grpo", "steer", "opo") for p in sorted(folder.glob(f"{name}-*"))]
    return analyze(order).tables


def panels(figure) -> dict[str, list]:
    """Title -> its axes, over all subfigures."""
    found: dict[str, list] = {}
    for axes in figure.findobj(Axes):
        found.setdefault(axes.get_title(loc="left"), []).append(axes)
    return found


def test_each_method_has_a_panel_with_its_mean_its_band_and_the_baseline(tables: Tables) -> None:
    found = panels(make("methods_curves", tables).figure)
    assert set(found) >= {"grpo", "steer", "opo (1 seed)"}
    data = tables["method_curves"]
    entropy, reward = found["steer"]
    for axes, metric in ((entropy, "entropy"), (reward, "reward")):
        rows = data[(data["metric"] == metric) & (data["method"] == "steer")]
        base = data[(data["metric"] == metric) & (data["method"] == "grpo")]
        baseline, own = axes.get_lines()  # grpo dashed, itself on top, and opo in grey
        np.testing.assert_allclose(own.get_ydata(), rows["mean"])
        np.testing.assert_allclose(baseline.get_ydata(), base["mean"])
        assert (
            baseline.get_linestyle() == "--" and own.get_color() == method_style("steer")["color"]
        )
        (grey,) = (c for c in axes.collections if isinstance(c, LineCollection))
        third = data[(data["metric"] == metric) & (data["method"] == "opo")]
        (segment,) = grey.get_segments()
        np.testing.assert_allclose(segment, third[["at", "mean"]])
        assert grey.get_alpha() < 0.5
        (band,) = (c for c in axes.collections if isinstance(c, PolyCollection))
        low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices.max(0)[1]
        assert (low, high) == pytest.approx((rows["mean_lo"].min(), rows["mean_hi"].max()))
    single = found["opo (1 seed)"][0]
    (band,) = (c for c in single.collections if isinstance(c, PolyCollection))
    assert not band.get_paths() or not len(band.get_paths()[0].vertices)
    grpo = found["grpo"][0]
    assert len(grpo.get_lines()) == 1 and entropy.get_ylim() == grpo.get_ylim()


def test_the_forest_shows_every_number_with_its_interval(tables: Tables) -> None:
    drawing = make("methods_summary", tables)
    methods = tables["methods"]
    names = ["entropy", "reward", "entropy_area", "reward_area", "improvement"]
    for axes, name in zip(drawing.figure.axes, names, strict=True):
        dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
        np.testing.assert_allclose([d.get_xdata()[0] for d in dots], methods[name])
        bars = [c.get_segments()[0] for c in axes.collections if isinstance(c, LineCollection)]
        ends = [[b[0][0], b[1][0]] if len(b) else [np.nan] * 2 for b in bars]
        np.testing.assert_allclose(ends, methods[[f"{name}_lo", f"{name}_hi"]])
        (level,) = (line for line in axes.get_lines() if line.get_marker() != "o")
        expected = 0.5 if name == "improvement" else methods.set_index("method").loc["grpo", name]
        assert level.get_xdata()[0] == pytest.approx(expected)
        filled = [to_hex(d.get_markerfacecolor()) == to_hex(d.get_color()) for d in dots]
        assert filled == [True, True, False]  # a single seed is hollow
    labels = [t.get_text() for t in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["grpo (3 seeds)", "steer (2 seeds)", "opo (1 seed)"]
    assert "Hollow: a single seed, no interval" in drawing.caption
    sure = tables | {"methods": methods[methods["seeds"] > 1]}
    assert "Hollow" not in make("methods_summary", sure).caption


def test_drift_shows_the_fixed_set_and_every_predictor_of_each_method(tables: Tables) -> None:
    found = panels(make("drift", tables).figure)
    data = tables["drift"].query("level == 'method' and name == 'steer'")
    (axes,) = found["steer"]
    zero, half, real, *lines = axes.get_lines()
    assert zero.get_ydata()[0] == 0 and half.get_xdata()[0] == pytest.approx(6.5)
    one = data[data["predictor"] == "cov"]
    np.testing.assert_allclose(real.get_ydata(), one["fixed"])
    predictors = list(dict.fromkeys(data["predictor"]))
    for line, predictor in zip(lines, predictors, strict=True):
        np.testing.assert_allclose(line.get_ydata(), data[data["predictor"] == predictor]["scaled"])
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(looks) == len(predictors)
    alone = tables["drift"].query("level == 'run' and name == 'opo-0'")
    drawing = make("drift", {"drift": alone})
    assert "opo-0" in panels(drawing.figure) and "n = 1 run." in drawing.caption


def test_settings_change_the_dash_of_a_method_and_never_its_colour() -> None:
    plain, set_ = method_style("steer"), method_style("steer lambda_min=0.5")
    assert plain["color"] == set_["color"]
    dashes = {str(method_style(f"steer lambda_min={x}")["linestyle"]) for x in (0.5, 0.6, 0.7, 0.8)}
    assert len(dashes) > 1
    assert method_style("mine a=1")["color"] == method_style("mine a=2")["color"]


def test_sixteen_methods_keep_to_a_page() -> None:
    at, names = np.arange(5.0), METHODS[:16]
    curves = pd.DataFrame(
        [
            {"method": m, "axis": "step", "at": t, "metric": metric, "mean": 0.5, "mean_lo": 0.4,
             "mean_hi": 0.6, "seeds": 5}
            for m in names for metric in ("entropy", "reward") for t in at
        ]
    )  # fmt: skip
    bands = {f"{n}{e}": 0.5 for n in ("entropy", "reward", "entropy_area", "reward_area",
             "improvement") for e in ("", "_lo", "_hi")}  # fmt: skip
    rows = [{"method": m, "baseline": "grpo", "seeds": 5, "axis": "step", "first": 0, "last": 4,
             **bands} for m in names]  # fmt: skip
    tables = {"method_curves": curves, "methods": pd.DataFrame(rows)}
    for name, most in (("methods_curves", 9.0), ("methods_summary", 4.5)):
        width, height = make(name, tables).figure.get_size_inches()
        assert width <= 7 and height <= most
    figure = make("methods_curves", tables).figure
    assert set(names) <= set(panels(figure))
    only = curves[curves["metric"] == "entropy"]
    assert len(make("methods_curves", tables | {"method_curves": only}).figure.subfigs) == 1
