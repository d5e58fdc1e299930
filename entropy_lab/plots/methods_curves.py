"""Entropy and reward of every method over its seeds, a panel each, beside the baseline."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from entropy_lab.plots import style

NEEDS = ("method_curves", "methods")
PANELS = (("entropy", "Entropy, nats per token"), ("reward", "Reward"))


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Mean over seeds with its interval; grey: the other methods, black: the baseline."""
    data, methods = tables["method_curves"], tables["methods"]
    names = list(methods["method"])
    shown = [(m, title) for m, title in PANELS if (data["metric"] == m).any()]
    columns = style.columns_for(len(names))
    rows = math.ceil(len(names) / columns)
    each = 0.93 + 0.12 * (style.lines_of(names) - 1)
    figure = style.new_figure(style.PAGE, max(1, len(shown)) * (0.45 + each * rows))
    blocks = figure.subfigures(max(1, len(shown)), 1, squeeze=False)[:, 0]
    for block, (metric, title) in zip(blocks, shown, strict=False):
        block.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
        grid = block.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        curves = {name: _curve(data, metric, name) for name in names}
        for axes, name in zip(grid.flat, names, strict=False):
            _panel(axes, curves, name, methods)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for column in range(columns):  # the lowest panel of each column carries the axis
            last = (len(names) - 1 - column) // columns
            grid[last, column].tick_params(labelbottom=True)
            grid[last, column].set_xlabel(_axis(methods))
        if metric == "entropy":
            grid[0, 0].set_ylim(bottom=0)
    return style.Drawing(figure, _caption(methods))


def _curve(data: pd.DataFrame, metric: str, method: str) -> pd.DataFrame:
    return data[(data["metric"] == metric) & (data["method"] == method)]


def _panel(axes: Axes, curves: dict[str, pd.DataFrame], name: str, methods: pd.DataFrame) -> None:
    baseline = methods["baseline"].iloc[0]
    others = [c[["at", "mean"]].to_numpy() for m, c in curves.items() if m not in (name, baseline)]
    # One artist for all of them: sixteen methods are hundreds of lines.
    axes.add_collection(LineCollection(others, colors=[style.faint()], alpha=0.25, linewidths=0.6))
    if name != baseline:
        base = curves[baseline]
        axes.plot(base["at"], base["mean"], color=style.ink(), linewidth=0.9, linestyle=(0, (3, 1)))
    own, look = curves[name], style.method_style(name)
    axes.fill_between(
        own["at"], own["mean_lo"], own["mean_hi"], color=look["color"], alpha=0.28, linewidth=0
    )
    axes.plot(own["at"], own["mean"], color=look["color"], linewidth=1.6)
    single = (methods["seeds"][methods["method"] == name] == 1).all()
    axes.set_title(style.wrapped(name) + (" (1 seed)" if single else ""), fontsize=7)
    style.grid(axes)


def _axis(methods: pd.DataFrame) -> str:
    return "optimizer step" if methods["axis"].iloc[0] == "step" else "rollout"


def _caption(methods: pd.DataFrame) -> str:
    seeds, baseline = methods["seeds"], methods["baseline"].iloc[0]
    span = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    single = " A method of one seed has no band." if seeds.min() == 1 else ""
    return (
        f"Running means over nine values, mean over seeds: n = {seeds.sum()} runs of "
        f"{len(methods)} methods, {span} seeds each, aligned on the {_axis(methods)}; a curve ends "
        f"with the method's shortest run. Bands: 95 % interval at each value (bootstrap over "
        f"seeds within a method).{single} Dashed: {baseline}; grey: the other methods."
    )
