"""Which layers' weights moved the entropy: shares of the first-order change."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("layers",)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Left: signed part of each layer in the mean change; right: its share of the absolute sum."""
    data = tables["layers"]
    runs = style.shown_runs(data)
    most = max(int((data["run"] == run).sum()) for run in runs)
    figure = style.new_figure(style.PAGE, 0.35 + len(runs) * (0.5 + min(0.2, 6 / most) * most))
    grid = figure.subplots(len(runs), 2, squeeze=False, sharex="col")
    ends = data[["part", "part_lo", "part_hi"]].abs().max().max()
    scale, unit = style.power_of_ten(float(ends))
    for row, run in enumerate(runs):
        here = data[data["run"] == run]
        place = np.arange(len(here), dtype=float)
        _parts(grid[row, 0], here, place, scale)
        _shares(grid[row, 1], here, place)
        several = f"{run} · " if len(runs) > 1 else ""
        grid[row, 0].set_title(f"{several}Part of the mean change")
        grid[row, 1].set_title(f"{several}Share of the absolute parts")
        for axes in grid[row]:
            names = [str(n) if i % _every(len(here)) == 0 else "" for i, n in
                     enumerate(here["layer"])]  # fmt: skip
            axes.set_yticks(place, names, fontsize=6.5)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelbottom=True)
            style.grid(axes, "x")
    grid[-1, 0].set_xlabel(unit)
    grid[-1, 1].set_xlabel("share")
    return style.Drawing(figure, _caption(data))


def _every(layers: int) -> int:
    """Every how many layers have a label: a deep model has more than fit."""
    return max(1, -(-layers // 40))


def _parts(axes: Axes, data: pd.DataFrame, place: np.ndarray, scale: float) -> None:
    value = data["part"].to_numpy() / scale
    colours = [style.colour(style.LOWERS if v < 0 else style.RAISES) for v in value]
    axes.barh(place, value, height=0.66, color=colours)
    axes.hlines(place, data["part_lo"] / scale, data["part_hi"] / scale, color=style.ink(),
                linewidth=0.9)  # fmt: skip
    axes.axvline(0, color=style.faint(), linewidth=0.8)


def _shares(axes: Axes, data: pd.DataFrame, place: np.ndarray) -> None:
    axes.barh(place, data["share"], height=0.66, color=style.colour(style.PALETTE[2]))
    axes.hlines(place, data["share_lo"], data["share_hi"], color=style.ink(), linewidth=0.9)
    axes.set_xlim(left=0)


def _caption(data: pd.DataFrame) -> str:
    one = data.iloc[0]
    return (
        "Split of the first-order change of mean entropy (G · Δθ) by the layer whose weights "
        f"moved, embedding below, head above; the parts add up: n = {int(data['steps'].max())} "
        "deep steps, means over them. Blue lowers entropy, orange raises it. Lines: 95 % interval "
        f"({one['unit']}). No floor: a derivative, not a difference of two measurements."
        f"{style.left_out(data)}"
    )
