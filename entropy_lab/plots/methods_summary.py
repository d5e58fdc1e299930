"""Where every method ends: last entropy and reward, areas, and the chance to beat the baseline."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("methods",)
PANELS = (
    ("entropy", "last entropy", "nats per token"),
    ("reward", "last reward", "mean reward"),
    ("entropy_area", "entropy area", "nats per token"),
    ("reward_area", "reward area", "mean reward"),
    ("improvement", "P(more)", "chance"),
)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A row per method, a panel per number; dotted: the baseline's value, or an even chance."""
    methods = tables["methods"]
    each = 0.2 if style.lines_of(methods["method"]) == 1 else 0.31
    figure = style.new_figure(style.PAGE, 0.75 + each * len(methods))
    grid = figure.subplots(1, len(PANELS), squeeze=False, sharey=True)[0]
    place = -np.arange(len(methods), dtype=float)
    base = methods[methods["method"] == methods["baseline"]]
    for axes, (name, title, label) in zip(grid, PANELS, strict=True):
        _forest(axes, methods, name, place)
        level = 0.5 if name == "improvement" else float(base[name].iloc[0])
        axes.axvline(level, color=style.faint(), linewidth=0.8, linestyle=":")
        axes.set_title(title, fontsize=7.5)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
        style.grid(axes, "x")
    grid[-1].set_xlim(-0.04, 1.04)
    labels = [_label(row) for _, row in methods.iterrows()]
    grid[0].set_yticks(place, labels, fontsize=6.5)
    grid[0].set_ylim(place[-1] - 0.6, 0.6)
    return style.Drawing(figure, _caption(methods))


def _forest(axes: Axes, methods: pd.DataFrame, name: str, place: np.ndarray) -> None:
    for y, (_, row) in zip(place, methods.iterrows(), strict=True):
        hue = style.method_style(str(row["method"]))["color"]
        axes.hlines(y, row[f"{name}_lo"], row[f"{name}_hi"], color=hue, linewidth=1.6)
        face = style.paper() if row["seeds"] == 1 else hue
        axes.plot(
            row[name], y, "o", color=hue, markerfacecolor=face, markersize=4, label=row["method"]
        )


def _label(row: pd.Series) -> str:
    seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
    name, _, settings = str(row["method"]).partition(" ")
    return f"{name} ({seeds})" + (f"\n{settings}" if settings else "")


def _caption(methods: pd.DataFrame) -> str:
    one = methods.iloc[0]
    single = " Hollow: a single seed, no interval." if (methods["seeds"] == 1).any() else ""
    return (
        f"n = {methods['seeds'].sum()} runs of {len(methods)} methods, {one['axis']}s "
        f"{one['first']:g} to {one['last']:g}, which all runs reach. Last: interquartile mean of "
        "the last five values of all seeds; area: mean height of the curve, interquartile mean "
        "over seeds. P(more): chance that a seed ends with more reward than one of "
        f"{one['baseline']}. Lines: 95 % intervals (bootstrap over seeds within a method; score "
        "interval for P). "
        f"Dotted: {one['baseline']}, or an even chance.{single}"
    )
