"""Methods by benchmarks with their average; several models are further rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.analysis.benchmarks import AVERAGE, MADE_HERE
from entropy_lab.plots import style
from entropy_lab.plots.sheet import Column, Sheet

NEEDS = ("benchmarks",)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A panel per benchmark and one for the average; a row per model and method."""
    data = tables["benchmarks"]
    arms = list(dict.fromkeys(zip(data["model"], data["method"], strict=True)))
    titles = _titles(data)
    place = _places(arms)
    columns = min(len(titles), 4)
    rows = -(-len(titles) // columns)
    tall = 0.75 + 0.17 * (-place[-1] + 1)
    figure = style.new_figure(style.PAGE if columns > 1 else style.COLUMN * 1.4, rows * tall)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, title in zip(grid.flat, titles, strict=False):
        part = data[data["benchmark"] == title].set_index(["model", "method"])
        for y, arm in zip(place, arms, strict=True):
            if arm not in part.index:
                continue
            row = part.loc[arm]
            hue = style.method_style(str(arm[1]))["color"]
            axes.hlines(y, row["accuracy_lo"], row["accuracy_hi"], color=hue, linewidth=1.5)
            face = style.paper() if row["seeds"] == 1 else hue
            axes.plot(row["accuracy"], y, "o", color=hue, markerfacecolor=face, markersize=4)
        axes.set_title(str(title), fontsize=7.5)
        axes.set_xlabel("share right")
        axes.tick_params(axis="y", length=0)
        style.grid(axes, "x")
    for axes in grid.flat[len(titles) :]:
        axes.set_axis_off()
    several = data["model"].nunique() > 1
    labels = [style.short_label(f"{m} · {a}" if several else str(a), 34) for m, a in arms]
    grid[0, 0].set_yticks(place, labels, fontsize=6.5)
    grid[0, 0].set_ylim(place[-1] - 0.7, 0.7)
    return style.Drawing(figure, _caption(data))


def tabulate(tables: dict[str, pd.DataFrame]) -> Sheet:
    """Rows: model and method; a column per benchmark, in per cent, and the average."""
    data = tables["benchmarks"]
    titles = _titles(data)
    rows = []
    for (model, method), part in data.groupby(["model", "method"], sort=False):
        row = {"model": model, "method": method, "seeds": part["seeds"].max()}
        for cell in part.to_dict("records"):
            for end in ("", "_lo", "_hi"):
                row[f"{cell['benchmark']}{end}"] = cell[f"accuracy{end}"]
        rows.append(row)
    columns = (
        Column("model", "model", "text"), Column("method", "method", "text"),
        Column("seeds", "seeds", "count"), *(Column(str(t), str(t), "one", True) for t in titles),
    )  # fmt: skip
    return Sheet(pd.DataFrame(rows), columns, _caption(data) + " Numbers in per cent.")


def _titles(data: pd.DataFrame) -> list[str]:
    found = [str(b) for b in dict.fromkeys(data["benchmark"]) if b != AVERAGE]
    return [*found, AVERAGE] if AVERAGE in set(data["benchmark"]) else found


def _places(arms: list[tuple[str, str]]) -> np.ndarray:
    """A row each, with a gap between models."""
    place, y = [], 0.0
    for before, arm in zip([arms[0], *arms], arms, strict=False):
        y -= (0.6 if before[0] != arm[0] else 0.0) + (1.0 if place else 0.0)
        place.append(y)
    return np.array(place)


def _caption(data: pd.DataFrame) -> str:
    one = data[data["benchmark"] != AVERAGE].drop_duplicates("benchmark")
    sets = ", ".join(f"{r['benchmark']} ({r['n']:g} problems)" for r in one.to_dict("records"))
    arms = data.groupby(["model", "method"])["seeds"].max()
    models = [str(m) for m in dict.fromkeys(data["model"])]
    average = " The average weighs benchmarks equally." * (AVERAGE in set(data["benchmark"]))
    small = " “made here” is the small model that the settings make." * (MADE_HERE in models)
    hollow = " Hollow: a single seed, interval over problems." * bool((arms == 1).any())
    return (
        f"Share of right responses (avg@k) in the last evaluation: n = {int(arms.sum())} runs of "
        f"{len(arms)} methods on {len(models)} model{'s' * (len(models) > 1)}; {sets}.{average} "
        "Lines, brackets: 95 % interval (bootstrap over seeds within a method)."
        f"{hollow}{small} No floor: only right and wrong is counted."
    )
