"""A panel per method with its curve and band, beside the baseline and, in grey, the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullLocator

from entropy_lab.plots import style

Metric = tuple[str, str]  # value of the column `metric`, title of its block


def small_multiples(
    data: pd.DataFrame,
    names: Sequence[str],
    baseline: str,
    metrics: Sequence[Metric],
    axis: str,
    single: Sequence[str] = (),
    powers_of_two: bool = False,
) -> Figure:
    """One block of panels per metric. data: method, metric, at, mean, mean_lo, mean_hi.

    single: methods of one seed, which have no band. powers_of_two: `at` is on such an axis.
    """
    columns = style.columns_for(len(names))
    rows = math.ceil(len(names) / columns)
    each = 0.93 + 0.12 * (style.lines_of(names) - 1)
    # A lone method has its metrics side by side: a panel of a page's width says no more.
    lone = len(names) == 1
    each = 1.6 if lone else each
    high = 0.45 + each * rows
    figure = style.new_figure(style.PAGE, high * (1 if lone else max(1, len(metrics))))
    shape = (1, max(1, len(metrics))) if lone else (max(1, len(metrics)), 1)
    blocks = figure.subfigures(*shape, squeeze=False).flat
    for block, (metric, title) in zip(blocks, metrics, strict=False):
        curves = {
            n: data[(data["metric"] == metric) & (data["method"] == n)].sort_values("at")
            for n in names
        }
        _block(block, title, curves, baseline, single, (rows, columns))
        _axes_of(block, len(names), (rows, columns), axis, powers_of_two, curves)
    return figure


def _block(
    block: SubFigure,
    title: str,
    curves: Mapping[str, pd.DataFrame],
    baseline: str,
    single: Sequence[str],
    shape: tuple[int, int],
) -> None:
    block.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    grid = block.subplots(*shape, squeeze=False, sharex=True, sharey=True)
    for axes, name in zip(grid.flat, curves, strict=False):
        _panel(axes, curves, name, baseline)
        note = " (1 seed)" if name in single else ""
        axes.set_title(style.wrapped(name) + note, fontsize=7)
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()


def _axes_of(
    block: SubFigure,
    names: int,
    shape: tuple[int, int],
    axis: str,
    powers_of_two: bool,
    curves: Mapping[str, pd.DataFrame],
) -> None:
    grid, columns = block.axes, shape[1]
    for column in range(min(columns, names)):  # the lowest panel of each column carries the axis
        axes = grid[(names - 1 - column) // columns * columns + column]
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(axis)
    if powers_of_two:
        first = grid[0]
        first.set_xscale("log", base=2)
        known = sorted({float(k) for c in curves.values() for k in c["at"]})
        shown = known[:: max(1, math.ceil(len(known) / 5))]
        first.set_xticks(shown, [f"{k:g}" for k in shown])
        first.xaxis.set_minor_locator(NullLocator())


def _panel(axes: Axes, curves: Mapping[str, pd.DataFrame], name: str, baseline: str) -> None:
    others = [c[["at", "mean"]].to_numpy() for m, c in curves.items() if m not in (name, baseline)]
    # One artist for all of them: sixteen methods are hundreds of lines.
    axes.add_collection(LineCollection(others, colors=[style.faint()], alpha=0.25, linewidths=0.6))
    if name != baseline and baseline in curves:
        base = curves[baseline]
        axes.plot(base["at"], base["mean"], color=style.ink(), linewidth=0.9, linestyle=(0, (3, 1)))
    own, look = curves[name], style.method_style(name)
    axes.fill_between(
        own["at"], own["mean_lo"], own["mean_hi"], color=look["color"], alpha=0.28, linewidth=0
    )
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(own) < 8 else {}
    axes.plot(own["at"], own["mean"], color=look["color"], linewidth=1.6, **marker)
    style.grid(axes)
