"""Estimators of a token's entropy change against the measured one: PCC, SRCC, sign and MSE."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from entropy_lab.plots import style
from entropy_lab.plots.sheet import Column, Sheet

NEEDS = ("validation",)
ALSO = ("predictor_seeds",)
PANELS = (
    ("pcc", "PCC", "Pearson"), ("srcc", "SRCC", "Spearman"), ("sign", "Sign", "share equal"),
    ("mse", "MSE", "nats²"),
)  # fmt: skip


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A panel per measure, a row per estimator, a mark per run or per method over its seeds."""
    data = _rows(tables)
    arms = list(dict.fromkeys(data["arm"]))[: 2 * style.MOST_RUNS]
    names = list(dict.fromkeys(data["predictor"]))
    tall = 0.9 + len(names) * (0.16 + 0.05 * len(arms))
    lines = math.ceil(len(arms) / 4) if len(arms) > 1 else 0
    figure, top, below = style.with_legend(style.PAGE, tall, lines)
    grid = top.subplots(1, len(PANELS), sharey=True)
    place = -np.arange(len(names), dtype=float)
    shifts = np.linspace(0.28, -0.28, len(arms)) if len(arms) > 1 else np.zeros(1)
    for axes, (column, title, label) in zip(grid, PANELS, strict=True):
        for i, (arm, shift) in enumerate(zip(arms, shifts, strict=True)):
            part = data[data["arm"] == arm].set_index("predictor").reindex(names)
            hue = style.colour(style.PALETTE[i % len(style.PALETTE)])
            if f"{column}_lo" in part:
                low, high = part[f"{column}_lo"], part[f"{column}_hi"]
                axes.hlines(place + shift, low, high, color=hue, linewidth=1.1)
            axes.plot(part[column], place + shift, "os^Dv<>P"[i], color=hue, markersize=3.5,
                      label=arm, linestyle="none")  # fmt: skip
        axes.set_title(title, fontsize=8)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
        style.grid(axes, "x")
    grid[-1].set_xscale("log")
    grid[0].axvline(0, color=style.faint(), linewidth=0.7)
    grid[0].set_yticks(place, names)
    grid[0].set_ylim(place[-1] - 0.6, 0.6)
    if below is not None:
        below.legend(*grid[0].get_legend_handles_labels(), loc="center", ncols=min(4, len(arms)))
    return style.Drawing(figure, _caption(data))


def tabulate(tables: dict[str, pd.DataFrame]) -> Sheet:
    """The same numbers, a row per estimator and run or method."""
    data = _rows(tables)
    columns = (
        Column("arm", "run", "text"), Column("predictor", "estimator", "text"),
        Column("n", "rows", "count"), Column("pcc", "PCC", "fixed", True),
        Column("srcc", "SRCC", "fixed", True), Column("sign", "equal signs", "fixed", True),
        Column("mse", "MSE", "short", True),
    )  # fmt: skip
    return Sheet(data, columns, _caption(data))


def _rows(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Over seeds where a method has several, with the run or method in the column arm."""
    over = tables.get("predictor_seeds", pd.DataFrame())
    if len(over) and (over["seeds"] > 1).any():
        own = over[(over["target"] == "dH") & (over["kind"] == "form")]
        seeds = own["method"] + " (" + own["seeds"].astype(str) + " seeds)"
        return own.assign(arm=seeds, unit="bootstrap over seeds within a method")
    data = tables["validation"]
    data = data[(data["scope"] == "within_step") & (data["stratum"] == "all")]
    return data.assign(arm=data["run"], unit="bootstrap over steps, below ten over groups as well")


def _caption(data: pd.DataFrame) -> str:
    rows = data.groupby("arm")["n"].max()
    largest = f" in the largest of {len(rows)}" if len(rows) > 1 else ""
    return (
        "Estimators of a token's entropy change against the measured dH, within a step (medians "
        f"over steps): n = {rows.max():,} token rows{largest}. "
        "MSE in nats², of the estimate as it is, unscaled. Lines, brackets: 95 % interval "
        f"({data['unit'].iloc[0]}; SRCC and MSE of a single run have none). The floor of dH and "
        "the correlation that it leaves possible stand in summary.parquet."
    )
