"""What a weight that is normalised by one token's maximum comes down to, step by step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("weight_steps", "weights")


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Share of pinned weights where they vary; max / p99 of |Omega|; who the largest token is."""
    data, sums = tables["weight_steps"], tables["weights"]
    runs = style.shown_runs(data)
    varying = [r for r in runs if data.loc[data["run"] == r, "varies"].any()]
    panels = 3 if varying else 2
    figure, top, below = style.with_legend(style.PAGE, 2.3, int(len(runs) > 1))
    grid = top.subplots(1, panels)
    methods = dict(zip(sums["run"], sums["method"], strict=True))
    seen: dict[str, int] = {}
    for run in runs:
        part = data[data["run"] == run]
        look = style.method_style(str(methods.get(run, run)))
        # Runs of one method share its colour; their markers differ.
        place = seen[look["color"]] = seen.get(look["color"], -1) + 1
        marks = {"color": look["color"], "marker": "o^sD"[place % 4], "markersize": 2.2,
                 "label": run}  # fmt: skip
        if varying:
            moved = part[part["varies"]]
            if len(moved):
                grid[0].plot(moved["step"], moved["pinned"], **marks, linewidth=0.7)
        grid[-2].plot(part["step"], part["omega_peak"], **marks, linewidth=0.7)
        grid[-1].plot(part["step"], part["argmax_probability"], **marks, linestyle="none")
    if varying:
        _title(grid[0], "Weights pinned", "share near the largest")
        grid[0].set_ylim(-0.03, 1.03)
    _title(grid[-2], "Tail of |Ω|", "largest / 99 % quantile")
    grid[-2].axhline(1, color=style.faint(), linewidth=0.7)
    _title(grid[-1], "Who is the largest |Ω|", "its probability")
    grid[-1].axhline(0.1, color=style.faint(), linewidth=0.7, linestyle=":")
    grid[-1].set_ylim(-0.03, 1.03)
    if below is not None:
        below.legend(*grid[-2].get_legend_handles_labels(), loc="center", ncols=len(runs))
    return style.Drawing(figure, _caption(data, sums, runs, bool(varying)))


def _title(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(label)
    axes.set_xlabel("optimizer step")
    style.grid(axes)


def _caption(data: pd.DataFrame, sums: pd.DataFrame, runs: list[str], varying: bool) -> str:
    shown = sums[sums["run"].isin(runs)]
    texts = [_sentence(row, len(runs) > 1) for row in shown.to_dict("records")]
    none = (
        "" if varying else " No run here gives tokens different weights: train with --set "
        "method.name=steer to see how many are pinned."
    )  # fmt: skip
    return (
        f"n = {int(shown['n'].max()):,} token rows with an advantage, {int(shown['steps'].max())} "
        f"steps; Ω is dH_pred_steer. {' '.join(texts)} Dots: a probability of 0.1. Brackets: 95 % "
        f"interval ({shown['unit'].iloc[0]}). No floor: no measured change is in it.{none}"
        f"{style.left_out(data)}"
    )


def _sentence(row: dict, several: bool) -> str:
    name = f"{row['run']}: " if several else ""
    pinned = (
        f"{_band(row, 'pinned', 100, ' %')} of the weights are pinned (mean over steps), "
        if np.isfinite(row["pinned"]) else ""
    )  # fmt: skip
    text = (
        f"{name}{pinned}the largest |Ω| is {_band(row, 'omega_peak', 1, '')} times its 99 % "
        "quantile (median), a token with probability below 0.1 in "
        f"{_band(row, 'argmax_rare', 100, ' %')} of the steps."
    )
    return text[0].upper() + text[1:] if not name else text


def _band(row: dict, name: str, factor: float, unit: str) -> str:
    low, high = row[f"{name}_lo"] * factor, row[f"{name}_hi"] * factor
    digits = 0 if unit else 1
    band = f" [{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite(low) else ""
    return f"{row[name] * factor:.{digits}f}{unit}{band}"
