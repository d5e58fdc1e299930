"""Entropy, reward and measured entropy change along training, one colour per method."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style
from entropy_lab.plots.lacking import without

NEEDS = ("curves",)
# title, y label, column of each step, running mean
PANELS = (
    ("Entropy", "nats per token", "entropy_token_mean", "entropy_smooth"),
    ("Reward", "mean reward", "reward", "reward_smooth"),
    ("Entropy change of a step", "dH_train", "dH_train", "dH_smooth"),
)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Each step faint, its running mean strong; runs of one method share its colour."""
    curves = tables["curves"]
    runs = list(dict.fromkeys(curves["run"]))
    methods = list(dict.fromkeys(curves["method"]))
    legend = 0.2 * math.ceil(len(methods) / 6) if len(runs) > 1 else 0.0
    shown = [panel for panel in PANELS if curves[panel[2]].notna().any()]
    if not shown:
        raise without(
            "entropy_reward", "no step has an entropy, a reward or a dH",
            "entropy-lab train, or the Probe in a loop of your own",
        )  # fmt: skip
    figure = style.new_figure(style.PAGE, 2.35 + legend)
    rows = figure.add_gridspec(2, 1, height_ratios=[2.35, max(legend, 1e-3)])
    places = rows[0].subgridspec(1, len(shown))
    grid = [figure.add_subplot(places[i]) for i in range(len(shown))]
    for axes, (title, label, column, smooth) in zip(grid, shown, strict=True):
        scale, unit = 1.0, label
        if column == "dH_train":
            scale, unit = style.power_of_ten(float(curves[column].abs().quantile(0.95)))
            axes.axhline(0, color=style.faint(), linewidth=0.7)
        seen: set[str] = set()
        for run in runs:
            data = curves[curves["run"] == run]
            _line(axes, data, column, smooth, scale, seen)
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel("optimizer step")
        style.grid(axes)
    if shown[0][2] == "entropy_token_mean":
        grid[0].set_ylim(bottom=0)
    if len(runs) > 1:
        handles, labels = grid[0].get_legend_handles_labels()
        below = figure.add_subplot(rows[1])
        below.set_axis_off()
        below.legend(handles, labels, loc="center", ncols=min(6, len(labels)))
    return style.Drawing(figure, _caption(curves, runs, methods))


def _line(
    axes: Axes, data: pd.DataFrame, column: str, smooth: str, scale: float, seen: set[str]
) -> None:
    if not data[column].notna().any():
        return
    method = str(data["method"].iloc[0])
    look = style.method_style(method)
    axes.plot(data["step"], data[column] / scale, color=look["color"], alpha=0.22, linewidth=0.8)
    label = None if method in seen else method
    marker = style.point_marker(data[smooth])
    axes.plot(data["step"], data[smooth] / scale, label=label, **look, **marker)
    seen.add(method)


def _caption(curves: pd.DataFrame, runs: list[str], methods: list[str]) -> str:
    what = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    steps = curves.groupby("run")["step"].count()
    span = f"{steps.min()}" if steps.min() == steps.max() else f"{steps.min()} to {steps.max()}"
    return (
        f"Token-mean entropy, reward and mean entropy change of the step's own tokens: n = {what} "
        f"({', '.join(methods)}) of {span} steps. Faint: every step; strong: running mean over "
        "nine steps. The unit of a claim about a method is the run, so no band is drawn."
    )
