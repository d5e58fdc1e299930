"""Where the entropy change lives: by the token's probability and by its position's entropy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("regions",)
TITLES = {"probability": "By probability of the token", "entropy": "By entropy (nats)"}


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Mean dH of each bin with its interval; one run: also shares of tokens and of all |dH|."""
    data = tables["regions"]
    runs = list(dict.fromkeys(data["run"]))
    rows = 2 if len(runs) == 1 else len(runs)
    figure = style.new_figure(style.PAGE, 0.6 + 1.4 * rows)
    grid = figure.subplots(
        rows, 2, sharex="col", sharey="none" if len(runs) == 1 else "col", squeeze=False
    )
    ends = data[["dH", "dH_lo", "dH_hi"]].abs().max().max() if len(data) else 0.0
    scale, unit = style.power_of_ten(float(ends))
    for column, axis in enumerate(TITLES):
        here = data[data["axis"] == axis]
        names = list(dict.fromkeys(here.sort_values("lo")["bin"]))
        for row, run in enumerate(runs):
            one = here[here["run"] == run].set_index("bin").reindex(names)
            _means(grid[row, column], one, scale)
            title = TITLES[axis] if len(runs) == 1 else f"{run} · {TITLES[axis].lower()}"
            grid[row, column].set_title(title)
            grid[row, 0].set_ylabel(f"mean dH ({unit})")
            if len(runs) == 1:
                _shares(grid[1, column], one)
        worst = here.groupby("bin")["under_floor"].max()
        labels = [range_text(name) + style.mark(worst[name]).replace(" ", "\n") for name in names]
        grid[-1, column].set_xticks(range(len(names)), labels)
    if len(runs) == 1:
        grid[1, 0].set_ylabel("share")
        grid[1, 0].legend(loc="upper left")
    return style.Drawing(figure, _caption(data, runs))


def _means(axes: Axes, data: pd.DataFrame, scale: float) -> None:
    place = np.arange(len(data))
    ink = style.ink()
    axes.plot(place, data["dH"].to_numpy() / scale, "o-", color=ink, markersize=4, linewidth=0.8)
    axes.vlines(place, data["dH_lo"] / scale, data["dH_hi"] / scale, color=ink, linewidth=1.1)
    axes.axhline(0, color=style.faint(), linewidth=0.8)
    style.grid(axes)


def _shares(axes: Axes, data: pd.DataFrame) -> None:
    place = np.arange(len(data))
    axes.bar(
        place - 0.2, data["share"], 0.38, color=style.colour(style.PALETTE[6]), label="of tokens"
    )
    axes.bar(
        place + 0.2, data["abs_share"], 0.38, color=style.colour(style.PALETTE[0]), label="of Σ|dH|"
    )
    axes.set_ylim(bottom=0)
    style.grid(axes)


def range_text(name: str) -> str:
    """The name of a bin as a label: p[0.1,0.3) becomes 0.1–0.3."""
    low, high = name.strip("pH[])").split(",")
    return f"≥ {low}" if high == "inf" else f"{low}–{high}"


def _caption(data: pd.DataFrame, runs: list[str]) -> str:
    if data.empty:
        return "No token rows were recorded."
    rows = data[data["axis"] == "probability"].groupby("run")["n"].sum().max()
    text = (
        f"Mean measured entropy change by region: n = {rows:,} token rows of "
        f"{data['steps'].max()} steps{'' if len(runs) == 1 else ' in the largest run'}; lines: "
        f"95 % interval ({data['unit'].iloc[0]})."
    )
    if len(runs) == 1:
        text += " Below: the region's share of tokens and of the sum of |dH|."
    if style.mark(data["under_floor"].max()):
        text += (
            " †: more than half of the region's tokens have |dH| under two noise floors"
            f"{'' if len(runs) == 1 else ' in some run'}; what a single one did is not known."
        )
    return text
