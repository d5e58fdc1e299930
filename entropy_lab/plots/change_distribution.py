"""How large the entropy changes of single tokens are, and which sizes make up the sum."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style
from entropy_lab.plots.quadrants import LABELS

NEEDS = ("distribution",)
SIDES = ((-1, "falls", style.LOWERS, "-"), (1, "rises", style.RAISES, (0, (5, 1.5))))
QUADRANTS = tuple(name for name in LABELS if name != "zero")


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Shares of the tokens and of the sum of |dH| by size; one run: the sign regions as well."""
    data = tables["distribution"]
    runs = style.shown_runs(data)
    alone = len(runs) == 1
    figure = style.new_figure(style.PAGE, 3.9 if alone else 0.4 + 1.6 * len(runs))
    blocks = figure.subfigures(2 if alone else 1, 1, squeeze=False)[:, 0]
    grid = blocks[0].subplots(len(runs), 2, squeeze=False, sharex=True, sharey="col")
    for row, run in enumerate(runs):
        here = data[(data["run"] == run) & (data["region"] == "all")]
        several = "" if alone else f"{run} · "
        for axes, column, title in (
            (grid[row, 0], "share", "Share of the tokens"),
            (grid[row, 1], "abs_share", "Share of the sum of |dH|"),
        ):
            _panel(axes, here, column)
            axes.set_title(several + title)
    for axes, column in zip(grid[0], ("share", "abs_share"), strict=True):
        whole = data[(data["region"] == "all") & (data["sign"] != 0) & data["run"].isin(runs)]
        axes.set_ylim(0, _top(whole, column))
    for axes in grid[-1]:
        axes.set_xlabel("|dH|, nats")
    grid[0, 0].legend(loc="upper left")
    if alone:
        _regions(blocks[1].subplots(1, len(QUADRANTS), sharex=True, sharey=True), data)
    return style.Drawing(figure, _caption(data, runs))


def _regions(grid: np.ndarray, data: pd.DataFrame) -> None:
    for axes, name in zip(grid, QUADRANTS, strict=True):
        part = data[data["region"] == name]
        axes.set_title(LABELS[name], fontsize=7.5)
        axes.set_xlabel("|dH|, nats")
        if len(part):
            _panel(axes, part, "share")
            falls = part.loc[part["sign"] < 0, "share"].sum()
            axes.text(0.03, 0.97, f"{falls:.0%} fall", transform=axes.transAxes, va="top",
                      fontsize=6.5, color=style.faint())  # fmt: skip
        else:
            axes.text(0.5, 0.5, "no tokens", transform=axes.transAxes, ha="center", fontsize=7)
    grid[0].set_ylabel("share of its tokens")
    shown = data[data["region"].isin(QUADRANTS) & (data["sign"] != 0)]
    grid[0].set_ylim(0, _top(shown, "share"))


def _top(data: pd.DataFrame, column: str) -> float:
    """Room for the largest share; a wide interval of a rare one may leave the panel."""
    return 1.12 * float(data[column].max()) if len(data) else 1.0


def _panel(axes: Axes, data: pd.DataFrame, column: str) -> None:
    for sign, label, hue, dash in SIDES:
        part = data[data["sign"] == sign].sort_values("lo")
        if not len(part):
            continue
        # The first bin starts at 0 and the last is open: both get the width of the others.
        step = 10**0.25
        low = np.where(part["lo"] > 0, part["lo"], part["hi"] / step)
        high = np.where(np.isfinite(part["hi"]), part["hi"], part["lo"] * step)
        middle = np.sqrt(low * high)
        shade = style.colour(hue)
        axes.plot(middle, part[column], color=shade, linestyle=dash, label=label, linewidth=1.4,
                  marker="o", markersize=1.8)  # fmt: skip
        if column == "share":
            axes.fill_between(middle, part["share_lo"], part["share_hi"], color=shade, alpha=0.22,
                              linewidth=0)  # fmt: skip
    axes.set_xscale("log")
    floor = float(data["floor"].iloc[0]) if len(data) else float("nan")
    if np.isfinite(floor) and floor > 0:
        left = axes.get_xlim()[0]
        axes.axvspan(min(left, floor), 2 * floor, color=style.faint(), alpha=0.25, linewidth=0)
    style.grid(axes)


def _caption(data: pd.DataFrame, runs: list[str]) -> str:
    whole = data[data["region"] == "all"]
    rows = whole.groupby("run")["n"].sum().max()
    zero = whole.loc[whole["sign"] == 0, "share"].max() if (whole["sign"] == 0).any() else 0.0
    floor = whole["floor"].max()
    band = " Grey: |dH| under two floors." if np.isfinite(floor) and floor > 0 else ""
    return (
        f"Distribution of the entropy change of a token, four bins a decade: n = {rows:,} token "
        f"rows of {whole['steps'].max()} steps{'' if len(runs) == 1 else ' in the largest run'}; "
        f"blue: entropy falls, orange dashed: it rises; {zero:.1%} change by exactly 0. Bands: "
        f"95 % interval ({whole['unit'].iloc[0]}).{style.floor_text(floor)}{band}"
        f"{style.left_out(data)}"
    )
