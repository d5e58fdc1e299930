"""Predictions added up over a run, beside what the entropy of the fixed probe set really did."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.analysis.drift import MEASURED
from entropy_lab.analysis.tables import PREDICTOR_ORDER
from entropy_lab.plots import style

NEEDS = ("drift",)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A panel per method (or per run): the fixed set, and every predictor scaled on its half."""
    data = tables["drift"]
    several = bool((data["level"] == "method").any())
    data = data[data["level"] == ("method" if several else "run")]
    names = list(dict.fromkeys(data["name"]))
    predictors = list(dict.fromkeys(data["predictor"]))
    columns = style.columns_for(len(names))
    rows = math.ceil(len(names) / columns)
    height = rows * ((1.15 if rows > 1 else 2.2) + 0.12 * (style.lines_of(names) - 1) * several)
    legend = 0.17 * math.ceil((len(predictors) + 1) / 6)
    figure = style.new_figure(style.PAGE, 0.45 + height + legend)
    parts = figure.add_gridspec(2, 1, height_ratios=[height, legend])
    grid = parts[0].subgridspec(rows, columns).subplots(squeeze=False, sharex=True, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        _panel(axes, data[data["name"] == name], predictors)
        axes.set_title(style.wrapped(name) if several else name, fontsize=7)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for column in range(columns):  # the lowest panel of each column carries the axis
        last = grid[(len(names) - 1 - column) // columns, column]
        last.tick_params(labelbottom=True)
        last.set_xlabel("optimizer step")
    for axes in grid[:, 0]:
        axes.set_ylabel("nats")
    low, high = min(0.0, data["fixed"].min()), max(0.0, data["fixed"].max())
    grid[0, 0].set_ylim(low - 0.3 * (high - low), high + 0.3 * (high - low))
    below = figure.add_subplot(parts[1])
    below.set_axis_off()
    lines = [below.plot([], [], label="fixed set", **_real())[0]]
    lines += [below.plot([], [], label=p, **_look(p))[0] for p in predictors]
    below.legend(handles=lines, loc="center", ncols=min(6, len(lines)))
    return style.Drawing(figure, _caption(tables["drift"], len(names), several))


def _panel(axes: Axes, data: pd.DataFrame, predictors: list[str]) -> None:
    axes.axhline(0, color=style.faint(), linewidth=0.7)
    steps = data.drop_duplicates("step").sort_values("step")
    axes.axvline(steps["step"].median(), color=style.faint(), linewidth=0.7, linestyle=":")
    axes.plot(steps["step"], steps["fixed"], **_real(), **style.point_marker(steps["fixed"]))
    for predictor in predictors:
        own = data[data["predictor"] == predictor]
        marker = style.point_marker(own["scaled"])
        axes.plot(own["step"], own["scaled"], **_look(predictor), **marker)
    style.grid(axes)


def _real() -> dict[str, Any]:
    return {"color": style.ink(), "linewidth": 2.2, "alpha": 0.9, "zorder": 1.5}


def _look(predictor: str) -> dict[str, Any]:
    """A colour per predictor, the same in every panel; what was measured is grey."""
    if predictor in MEASURED:
        dash = style.DASHES[1 + MEASURED.index(predictor)]
        return {"color": style.faint(), "linestyle": dash, "linewidth": 1.0}
    known = [*PREDICTOR_ORDER, predictor]
    place = known.index(predictor)
    colour = style.colour(style.PALETTE[place % len(style.PALETTE)])
    dash = style.DASHES[place // len(style.PALETTE)]
    return {"color": colour, "linestyle": dash, "linewidth": 1.0}


def _caption(data: pd.DataFrame, panels: int, several: bool) -> str:
    runs = data[data["level"] == "run"]["name"].nunique()
    n = f"{runs} runs of {panels} methods, means over runs" if several else f"{runs} run"
    n += "s" if not several and runs > 1 else ""
    return (
        f"Black: change of the entropy of the fixed probe set since its start; n = {n}. Coloured: "
        "the sum of a predictor's step means, each run's multiplied by the factor that fits its "
        "first half best (left of the dots), so that what follows shows drift; factors and "
        "unscaled sums are in drift_final. The step means are over the step's own tokens, not over "
        "the fixed set: the measured dH_train and dH_heldout show what that alone does. A form "
        "that some steps lack is compared in the steps that have it. No interval: the run is the "
        "unit; those over seeds are in drift_final."
    )
