"""What the figures over one setting share: its arms, their curves and where they end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style
from entropy_lab.plots.lacking import without
from entropy_lab.plots.sheet import Column, Sheet

NEEDS = ("method_curves", "methods")
ALSO = ("benchmarks",)
CURVES = (("entropy", "Entropy", "nats per token"), ("reward", "Reward", "mean reward"))
ENDS = (("entropy", "last entropy"), ("entropy_area", "entropy area"), ("reward", "last reward"))
_MARKERS = "os^Dv<>PX*"


@dataclass(frozen=True)
class Sweep:
    """keys: settings in the labels of its arms, one of which has to contain one of `among`.

    made: the command that runs such a sweep.
    """

    name: str
    keys: tuple[str, ...]
    what: str
    made: str
    among: tuple[str, ...] = ("",)


def draw_sweep(sweep: Sweep, tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Left: entropy and reward of every arm; right: where they end, with intervals."""
    methods = arms_of(sweep, tables)
    curves = tables["method_curves"]
    names = [str(m) for m in methods["method"]]
    accuracy = _accuracy(tables, names)
    ends = [*ENDS, *([("accuracy", "accuracy")] if len(accuracy) else [])]
    each = 0.29 if any("\n" in label for label in _labels(names)) else 0.2
    figure = style.new_figure(style.PAGE, 3.1 + each * len(names))
    heights = [2.2, 0.9 + each * len(names)]
    top, bottom = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (metric, title, label) in zip(top.subplots(1, 2), CURVES, strict=True):
        for i, name in enumerate(names):
            rows = curves[(curves["method"] == name) & (curves["metric"] == metric)]
            rows = rows.sort_values("at")
            look = _look(i, len(names))
            axes.fill_between(rows["at"], rows["mean_lo"], rows["mean_hi"], alpha=0.13,
                              color=look["color"], linewidth=0)  # fmt: skip
            axes.plot(rows["at"], rows["mean"], **look, linewidth=1.3)
        axes.set_title(title)
        axes.set_ylabel(label)
        axes.set_xlabel("optimizer step" if methods["axis"].iloc[0] == "step" else "rollout")
        style.grid(axes)
        _limits(axes, curves[curves["method"].isin(names) & (curves["metric"] == metric)])
    _ends(bottom.subplots(1, len(ends), sharey=True), ends, methods, accuracy, names)
    return style.Drawing(figure, _caption(sweep, methods, bool(len(accuracy))))


def tabulate_sweep(sweep: Sweep, tables: dict[str, pd.DataFrame]) -> Sheet:
    """Where every arm ends, with intervals."""
    methods = arms_of(sweep, tables)
    accuracy = _accuracy(tables, [str(m) for m in methods["method"]])
    ends = list(ENDS)
    if len(accuracy):
        methods = methods.merge(accuracy, on="method", how="left")
        ends.append(("accuracy", "accuracy"))
    columns = (
        Column("method", "method", "text"), Column("seeds", "seeds", "count"),
        *(Column(name, title, "fixed", True) for name, title in ends),
    )  # fmt: skip
    return Sheet(methods, columns, _caption(sweep, methods, bool(len(accuracy))))


def arms_of(sweep: Sweep, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of `methods` that differ in the sweep's settings; Lacking below two."""
    methods = tables["methods"]
    inside = methods[[any(f" {k}=" in str(m) for k in sweep.keys) for m in methods["method"]]]
    known = any(mark in str(m) for m in inside["method"] for mark in sweep.among)
    if len(inside) < 2 or not known:
        raise without(
            sweep.name,
            f"no two runs differ in {' or '.join(sweep.keys)}{_marks(sweep)}",
            sweep.made,
        )
    return inside.reset_index(drop=True)


def _marks(sweep: Sweep) -> str:
    return f" with {' and '.join(sweep.among)} among them" if any(sweep.among) else ""


def _accuracy(tables: dict[str, pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """method, accuracy and its ends: the average of the benchmarks, or the only one."""
    data = tables.get("benchmarks", pd.DataFrame())
    if not len(data):
        return pd.DataFrame()
    data = data[data["method"].isin(names)]
    # The average, where there is one, is a method's last row.
    last = data.drop_duplicates("method", keep="last")
    return last[["method", "accuracy", "accuracy_lo", "accuracy_hi"]]


def _limits(axes: Axes, curves: pd.DataFrame) -> None:
    """Around the means: the interval of two seeds can be wider than everything else together."""
    low, high = float(curves["mean"].min()), float(curves["mean"].max())
    room = 0.35 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(max(0.0, low - room) if low >= 0 else low - room, high + room)


def _labels(names: list[str]) -> list[str]:
    """The settings of each arm, below its method's name where the arms are of several."""
    if len({style.method_of(n) for n in names}) == 1:
        return [n.partition(" ")[2].replace(" ", ", ") for n in names]
    return [n if len(n) < 30 else n.replace(" ", "\n", 1) for n in names]


def _look(place: int, count: int) -> dict:
    """Colour, dash and marker of an arm, by its place; arms of one method must stay apart."""
    return {
        "color": style.colour(style.PALETTE[place % len(style.PALETTE)]),
        "linestyle": style.DASHES[place % len(style.DASHES)],
        "marker": _MARKERS[place % len(_MARKERS)], "markersize": 3, "markevery": 0.12,
    }  # fmt: skip


def _ends(
    grid: np.ndarray, ends: list[tuple[str, str]], methods: pd.DataFrame, accuracy: pd.DataFrame,
    names: list[str],
) -> None:  # fmt: skip
    place = -np.arange(len(names), dtype=float)
    for axes, (column, title) in zip(grid, ends, strict=True):
        source = accuracy if column == "accuracy" else methods
        rows = source.set_index("method").reindex(names)
        for i, y in enumerate(place):
            _dot(axes, rows.iloc[i], column, y, _look(i, len(names)), methods["seeds"].iloc[i] == 1)
        axes.set_title(title, fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        style.grid(axes, "x")
    grid[0].set_yticks(place, _labels(names), fontsize=6.5)
    grid[0].set_ylim(place[-1] - 0.6, 0.6)


def _dot(axes: Axes, row: pd.Series, column: str, y: float, look: dict, single: bool) -> None:
    hue = look["color"]
    axes.hlines(y, row[f"{column}_lo"], row[f"{column}_hi"], color=hue, linewidth=1.5)
    face = style.paper() if single else hue
    axes.plot(row[column], y, look["marker"], color=hue, markersize=4, markerfacecolor=face)


def _caption(sweep: Sweep, methods: pd.DataFrame, evaluated: bool) -> str:
    one, seeds = methods.iloc[0], methods["seeds"]
    single = " Hollow: a single seed, no interval." if (seeds == 1).any() else ""
    held = " Accuracy: share of right held-out responses in the last evaluation." * evaluated
    return (
        f"{sweep.what}: n = {seeds.sum()} runs of {len(methods)} arms, {one['axis']}s "
        f"{one['first']:g} to {one['last']:g}. Curves: running means over nine values, mean over "
        "seeds; a band may leave the panel. Last: interquartile mean of the last five values of "
        f"all seeds; area: mean height of the curve.{held} Bands, lines, brackets: "
        f"95 % interval (bootstrap over seeds within a method).{single} No floor: these are not "
        "measured changes."
    )
