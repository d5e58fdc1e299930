"""The error budget: how close each rung comes to dH, and what it adds to the one below."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from entropy_lab.plots import style

NEEDS = ("budget",)
GAINS, LOSES = style.PALETTE[0], style.PALETTE[1]


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Left: PCC of every rung with its interval; right: shares of variance that add up to 1."""
    data = tables["budget"]
    runs = list(dict.fromkeys(data["run"]))
    most = max((int((data["run"] == run).sum()) for run in runs), default=1)
    figure = style.new_figure(style.PAGE, 0.4 + max(1, len(runs)) * (0.4 + 0.24 * most))
    grid = figure.subplots(max(1, len(runs)), 2, squeeze=False, sharex="col")
    for row, run in enumerate(runs):
        here = data[data["run"] == run]
        rungs, beside = here[here["rung"] > 0], here[here["rung"] == 0]
        place = np.arange(len(here), dtype=float)
        place[len(rungs) :] += 0.5  # a gap: these are no rungs
        _ladder(grid[row, 0], pd.concat([rungs, beside]), place)
        _shares(grid[row, 1], rungs)
        several = f"{run} · " if len(runs) > 1 else ""
        grid[row, 0].set_title(f"{several}PCC with dH in a step")
        grid[row, 1].set_title(f"{several}Share of var dH added")
        for axes in grid[row]:
            axes.set_ylim(-0.6, place.max() + 0.6)
            axes.tick_params(axis="x", labelbottom=True)
            axes.tick_params(axis="y", length=0)
            style.grid(axes, "x")
    return style.Drawing(figure, _caption(data, len(runs)))


def _ladder(axes: Axes, data: pd.DataFrame, place: NDArray[np.float64]) -> None:
    ink, solid = style.ink(), style.colour(GAINS)
    known = (data["form"] != "dH").to_numpy()  # dH itself has no correlation to show
    data, at = data[known], place[known]
    rung = (data["rung"] > 0).to_numpy()
    axes.hlines(at, data["pcc_lo"], data["pcc_hi"], color=ink, linewidth=1.0)
    axes.plot(data["pcc"][rung], at[rung], "o-", color=solid, markersize=5, linewidth=0.8)
    axes.plot(
        data["pcc"][~rung], at[~rung], "o", color=solid, markersize=5,
        markerfacecolor=axes.get_facecolor(),
    )  # fmt: skip
    ends = np.fmax(data["pcc"], data["pcc_hi"])
    for y, value, end in zip(at, data["pcc"], ends, strict=True):
        _label(axes, style.number(value), end, y)
    axes.set_yticks(at, list(data["form"]))
    axes.set_xlim(min(0.0, float(data[["pcc", "pcc_lo"]].min().min())), 1.15)


def _shares(axes: Axes, data: pd.DataFrame) -> None:
    place = np.arange(len(data), dtype=float)
    added, end = (data[name].to_numpy() for name in ("added", "explained"))
    start = end - added
    colours = [style.colour(GAINS if a >= 0 else LOSES) for a in added]
    axes.barh(place, added, left=start, height=0.6, color=colours)
    low, high = (start + data[f"added_{side}"].to_numpy() for side in ("lo", "hi"))
    axes.hlines(place, low, high, color=style.ink(), linewidth=0.9)
    axes.vlines(end[:-1], place[:-1], place[1:], color=style.faint(), linewidth=0.6)
    for y, value, right in zip(place, added, np.fmax(np.fmax(start, end), high), strict=True):
        _label(axes, f"{style.number(100 * value, 1)} %", right, y)
    axes.set_yticks(place, [word.replace(" and ", "\nand ") for word in data["adds"]])
    axes.set_xlim(
        min(0.0, float(np.nanmin(low, initial=0.0))), 0.15 + float(np.nanmax(high, initial=1.0))
    )


def _label(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(
        text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=6.5,
        color=style.faint(),
    )  # fmt: skip


def _caption(data: pd.DataFrame, runs: int) -> str:
    if data.empty:
        return "No deep step was recorded."
    return (
        "Error budget of the entropy change of a token, one rung per simplification that is "
        f"dropped: n = {data['n'].max():,} token rows of {data['steps'].max()} deep steps"
        f"{f' in the largest of {runs} runs' if runs > 1 else ''}. Left: median within-step PCC; "
        "hollow: forms beside the ladder. Right: PCC², every form scaled by its own slope of the "
        "step, mean over steps; bars start where the rung below ends and add up to 1. Lines: 95 % "
        f"interval ({data['unit'].iloc[0]})."
    )
