"""What each sign region adds to the entropy change: measured, and as every form predicts it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("quadrants",)
LABELS = {
    "pos_likely": "A > 0, likely",
    "pos_unlikely": "A > 0, unlikely",
    "neg_likely": "A < 0, likely",
    "neg_unlikely": "A < 0, unlikely",
    "zero": "A = 0",
}


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Bars of contribution = share x mean with 95 % intervals; they add up to the mean change."""
    data = tables["quadrants"]
    runs = list(dict.fromkeys(data["run"]))
    quantities = list(dict.fromkeys(data["quantity"]))
    if len(runs) > 1:
        quantities = ["dH"]
    panels = [(run, quantity) for run in runs for quantity in quantities]
    columns = style.columns_for(len(panels))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = style.new_figure(style.PAGE, 0.25 + 1.9 * rows)
    # The same quantity of several runs is compared on one scale.
    several = len(runs) > 1
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=several)
    for axes, (run, quantity) in zip(grid.flat, panels, strict=False):
        here = data[(data["run"] == run) & (data["quantity"] == quantity)]
        _panel(axes, here, quantity, _largest(data[data["quantity"] == "dH"] if several else here))
        title = "measured dH" if quantity == "dH" else f"predicted by\n{quantity}"
        axes.set_title(style.short_label(run, 22) if several else title, fontsize=7.5)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    return style.Drawing(figure, _caption(data, len(runs)))


def _largest(data: pd.DataFrame) -> float:
    ends = data[["contribution", "contribution_lo", "contribution_hi"]]
    return float(ends.abs().max().max())


def _panel(axes: Axes, data: pd.DataFrame, quantity: str, largest: float) -> None:
    order = [name for name in LABELS if name in set(data["quadrant"])]
    data = data.set_index("quadrant").loc[order]
    scale, unit = style.power_of_ten(largest)
    value = data["contribution"].to_numpy() / scale
    place = np.array([list(LABELS).index(name) for name in order])
    colours = [style.colour(style.LOWERS if v < 0 else style.RAISES) for v in value]
    axes.barh(place, value, height=0.62, color=colours, alpha=1.0 if quantity == "dH" else 0.75)
    low, high = (data[f"contribution_{end}"].to_numpy() / scale for end in ("lo", "hi"))
    axes.hlines(place, low, high, color=style.ink(), linewidth=0.9)
    axes.axvline(0, color=style.faint(), linewidth=0.8)
    labels = [
        f"{LABELS[name]}\n{data.loc[name, 'share']:.0%} of tokens"
        if name in order
        else LABELS[name]
        for name in LABELS
    ]
    axes.set_yticks(range(len(LABELS)), labels, fontsize=6, linespacing=1.0)
    axes.set_ylim(len(LABELS) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel(unit)
    axes.margins(x=0.08)
    style.grid(axes, "x")


def _caption(data: pd.DataFrame, runs: int) -> str:
    if data.empty:
        return "No token rows were recorded."
    measured = data[data["quantity"] == "dH"]
    rows = measured.groupby("run")["n"].sum().max()
    return (
        "Contribution of each sign region (sign of the advantage; likely: log π > −H) to the mean "
        f"entropy change of a token: n = {rows:,} token rows of {measured['steps'].max()} steps"
        f"{f' in the largest of {runs} runs' if runs > 1 else ''}. Blue lowers entropy, orange "
        f"raises it; {'one scale' if runs > 1 else 'every panel has its own scale'}; "
        f"lines: 95 % interval ({data['unit'].iloc[0]})."
    )
