"""Predicted against measured entropy change of every token, one panel per predictor."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from entropy_lab.plots import style

NEEDS = ("density", "density_panels")
LINE = "#D55E00"


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Log-coloured density, the best-slope line, y = x, and what lies under two floors."""
    panels = tables["density_panels"]
    several = panels["run"].nunique() > 1
    columns = style.columns_for(panels["predictor"].nunique(), most=3)
    rows = max(1, math.ceil(len(panels) / columns))
    figure = style.new_figure(style.PAGE, rows * (0.75 + 0.8 * style.PAGE / max(columns, 2)))
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
    counts = tables["density"]
    top = max(2.0, float(counts["count"].max())) if len(counts) else 2.0
    image = None
    for axes, (_, panel) in zip(grid.flat, panels.iterrows(), strict=False):
        here = counts[(counts["run"] == panel["run"]) & (counts["predictor"] == panel["predictor"])]
        image = _panel(axes, panel, here, top, several)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        scale, unit = style.power_of_ten(float(panels["y_range"].max()))
        axes.set_ylabel(f"measured dH ({unit})")
    if image is not None:
        bar = figure.colorbar(image, ax=grid, fraction=0.025, pad=0.015, aspect=30)
        bar.set_label("token rows per bin")
        bar.outline.set_visible(False)
    return style.Drawing(figure, _caption(panels))


def _panel(axes: Axes, panel: pd.Series, counts: pd.DataFrame, top: float, several: bool):
    x_scale, x_unit = style.power_of_ten(panel["x_range"])
    y_scale, _ = style.power_of_ten(panel["y_range"])
    half_x, half_y, bins = panel["x_range"] / x_scale, panel["y_range"] / y_scale, panel["bins"]
    image = np.full((bins, bins), np.nan)
    across = _bin(counts["x"], panel["x_range"], bins)
    image[_bin(counts["y"], panel["y_range"], bins), across] = counts["count"]
    shown = axes.imshow(
        image,
        extent=(-half_x, half_x, -half_y, half_y),
        origin="lower",
        aspect="auto",
        cmap=style.density_colours(),
        norm=LogNorm(0.7, top),
        interpolation="nearest",
    )
    ends = np.array([-half_x, half_x])
    for slope, look in (
        (1.0, {"color": style.faint(), "linewidth": 0.9, "linestyle": (0, (3, 2))}),
        (panel["slope"], {"color": style.colour(LINE), "linewidth": 1.4}),
    ):
        axes.plot(ends, slope * ends * x_scale / y_scale, **look)
    if np.isfinite(panel["floor"]):
        edge = 2 * panel["floor"] / y_scale
        axes.axhspan(-edge, edge, color=style.faint(), alpha=0.35, linewidth=0)
    axes.set_xlim(-half_x, half_x)
    axes.set_ylim(-half_y, half_y)
    axes.set_xlabel(f"predicted ({x_unit})")
    name = panel["predictor"]
    axes.set_title(f"{panel['run']} · {name}" if several else name, pad=15)
    band = f"[{style.number(panel['pcc_lo'])}, {style.number(panel['pcc_hi'])}]"
    numbers = f"PCC {style.number(panel['pcc'])} {band}, slope {style.significant(panel['slope'])}"
    axes.text(0, 1.03, numbers, transform=axes.transAxes, fontsize=6.5, color=style.faint())
    return shown


def _bin(centres: pd.Series, half: float, bins: int) -> np.ndarray:
    return np.rint((centres.to_numpy() / half + 1) * bins / 2 - 0.5).astype(int)


def _caption(panels: pd.DataFrame) -> str:
    if panels.empty:
        return "No predictions were recorded."
    first = panels.iloc[0]
    share = (panels["shown"] / panels["n"]).min()
    fewer = panels[panels["n"] < panels["n"].max()]
    some = f" ({fewer['n'].max():,} of {fewer['steps'].max()} for path forms)" if len(fewer) else ""
    return (
        f"Predicted against measured entropy change of each token: n = {panels['n'].max():,} "
        f"token rows of {panels['steps'].max()} steps{some}; at least {share:.1%} lie inside the "
        "panels. Orange: best slope through the origin (all rows); dashed: y = x; both axes have "
        f"their own scale. PCC: median within-step correlation, 95 % interval ({first['unit']})."
        f"{_floor(panels)}"
    )


def _floor(panels: pd.DataFrame) -> str:
    if not panels["floor"].notna().any():
        return ""
    largest = panels.sort_values("floor", na_position="first").iloc[-1]
    thin = 2 * largest["floor"] < largest["y_range"] / largest["bins"]  # half a bin
    size = f"{2 * largest['floor']:.2g}"  # a caption is text in the report, too
    return (
        f" Grey band: |dH| under two noise floors ({size} nats"
        f"{'; less than the bin around 0' if thin else ''}), whose sign and size are not known."
    )
