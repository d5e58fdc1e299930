"""Mean measured entropy change where a form predicts about as much, one panel per predictor."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("calibration", "density_panels")


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Mean dH of each bin with its interval, the best-slope line through the origin and y = x."""
    data, panels = tables["calibration"], tables["density_panels"]
    several = panels["run"].nunique() > 1
    columns = style.columns_for(panels["predictor"].nunique(), most=4)
    rows = max(1, math.ceil(len(panels) / columns))
    figure = style.new_figure(style.PAGE, rows * (0.85 + 0.6 * style.PAGE / max(columns, 3)))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (_, panel) in zip(grid.flat, panels.iterrows(), strict=False):
        here = data[(data["run"] == panel["run"]) & (data["predictor"] == panel["predictor"])]
        _panel(axes, panel, here, several)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(f"mean measured dH ({axes.get_ylabel()})")
    return style.Drawing(figure, _caption(data))


def _panel(axes: Axes, panel: pd.Series, data: pd.DataFrame, several: bool) -> None:
    x_scale, x_unit = style.power_of_ten(float(data["predicted"].abs().max()))
    y_scale, y_unit = style.power_of_ten(float(data[["dH", "dH_lo", "dH_hi"]].abs().max().max()))
    x, y = data["predicted"] / x_scale, data["dH"] / y_scale
    ends = np.array([min(x.min(), 0.0), max(x.max(), 0.0)])
    low, high = data["dH_lo"] / y_scale, data["dH_hi"] / y_scale
    bottom, top = min(0.0, y.min(), low.min()), max(0.0, y.max(), high.max())
    for slope, look in (
        (1.0, {"color": style.faint(), "linewidth": 0.9, "linestyle": (0, (3, 2))}),
        (panel["slope"], {"color": style.colour(style.PALETTE[1]), "linewidth": 1.2}),
    ):
        axes.plot(ends, slope * ends * x_scale / y_scale, **look)
    axes.vlines(x, low, high, color=style.ink(), linewidth=1.0)
    axes.plot(x, y, "o", color=style.ink(), markersize=2.8)
    axes.axhline(0, color=style.faint(), linewidth=0.5)
    axes.set_ylim(bottom - 0.08 * (top - bottom), top + 0.08 * (top - bottom))
    axes.set_xlabel(f"predicted ({x_unit})")
    axes.set_ylabel(y_unit)
    name = panel["predictor"]
    axes.set_title(f"{panel['run']} · {name}" if several else name, pad=22)
    ends = [style.significant(panel[f"slope_{end}"]) for end in ("lo", "hi")]
    numbers = f"slope {style.significant(panel['slope'])}\n[{', '.join(ends)}]"
    axes.text(0, 1.03, numbers, transform=axes.transAxes, fontsize=6, color=style.faint())
    style.grid(axes)


def _caption(data: pd.DataFrame) -> str:
    if data.empty:
        return "No predictions were recorded."
    rows = data.groupby(["run", "predictor"])["n"].sum()
    return (
        f"Calibration: n = {rows.max():,} token rows of {data['steps'].max()} steps, cut into bins "
        "by quantile of the prediction (1, 5, 10, 20, … 90, 95, 99 %); points: mean measured "
        "against mean predicted change of each bin. Dashed: y = x; orange: best slope through the "
        "origin (all rows). A form whose points do not follow a rising line is right about neither "
        "size nor sign there. Lines: 95 % interval "
        f"({data['unit'].iloc[0]}); every panel has its own scales."
    )
