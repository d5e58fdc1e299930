"""What a step did to its own tokens against what it did to the policy: dH_train and dH_heldout."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.analysis.layers import ALL_AGES
from entropy_lab.plots import style

NEEDS = ("curves", "train_heldout")
TRAIN, HELDOUT = style.PALETTE[1], style.PALETTE[0]


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Left: every step, by age; right: means by age with intervals, and their ratio."""
    curves, means = tables["curves"], tables["train_heldout"]
    runs = style.shown_runs(means)
    most = max(len(means[means["run"] == run]) for run in runs)
    figure = style.new_figure(style.PAGE, 0.4 + len(runs) * max(2.0, 0.55 + 0.3 * min(most, 10)))
    grid = figure.subplots(len(runs), 2, squeeze=False, width_ratios=[1, 1.25])
    for row, run in enumerate(runs):
        here = curves[curves["run"] == run]
        _scatter(grid[row, 0], here[here[["dH_train", "dH_heldout"]].notna().all(axis=1)])
        _means(grid[row, 1], means[means["run"] == run].head(10))
        if len(runs) > 1:
            grid[row, 0].set_title(run)
    return style.Drawing(figure, _caption(means))


def _scatter(axes: Axes, data: pd.DataFrame) -> None:
    scale, unit = style.power_of_ten(float(data[["dH_train", "dH_heldout"]].abs().max().max()))
    x, y = data["dH_heldout"] / scale, data["dH_train"] / scale
    ages = data["age"].to_numpy(dtype=np.float64)
    lowest, highest = min(x.min(), y.min(), 0.0), max(x.max(), y.max(), 0.0)
    pad = 0.05 * (highest - lowest or 1.0)
    axes.plot([lowest, highest], [lowest, highest], color=style.faint(), linewidth=0.9,
              linestyle=(0, (3, 2)))  # fmt: skip
    for i, age in enumerate(sorted(set(ages))[:8]):
        at = ages == age
        axes.plot(x[at], y[at], "os^Dv<>P"[i], markersize=2.8, alpha=0.75, linestyle="none",
                  color=style.colour(style.PALETTE[i]), label=f"age {age:g}")  # fmt: skip
    axes.axhline(0, color=style.faint(), linewidth=0.5)
    axes.axvline(0, color=style.faint(), linewidth=0.5)
    axes.set_xlim(lowest - pad, highest + pad)
    axes.set_ylim(lowest - pad, highest + pad)
    axes.set_xlabel(f"dH_heldout of a step ({unit})")
    axes.set_ylabel("dH_train")
    axes.legend(loc="upper left", fontsize=6.5, handletextpad=0.1)
    style.grid(axes, "both")


def _means(axes: Axes, means: pd.DataFrame) -> None:
    names = ("train", "heldout")
    scale, unit = style.power_of_ten(float(means[list(names)].abs().max().max()))
    place = -np.arange(len(means), dtype=float)
    for name, hue, shift, mark in (("train", TRAIN, 0.14, "s"), ("heldout", HELDOUT, -0.14, "o")):
        shade = style.colour(hue)
        low, high = means[f"{name}_lo"] / scale, means[f"{name}_hi"] / scale
        axes.hlines(place + shift, low, high, color=shade, linewidth=1.4)
        axes.plot(means[name] / scale, place + shift, mark, color=shade, markersize=4,
                  label=f"dH_{name}")  # fmt: skip
    axes.axvline(0, color=style.faint(), linewidth=0.7)
    axes.set_yticks(place, [_label(row) for row in means.to_dict("records")], fontsize=6.5)
    axes.set_ylim(place[-1] - 0.6, 1.0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"mean over steps ({unit})")
    axes.legend(loc="upper left", ncols=2, fontsize=6.5)
    style.grid(axes, "x")


def _label(row: dict) -> str:
    age = "all steps" if row["age"] == ALL_AGES else f"age {row['age']}"
    if not np.isfinite(row["ratio"]):
        return age
    band = ""
    if np.isfinite(row["ratio_lo"]):
        band = f" [{row['ratio_lo']:.2f}, {row['ratio_hi']:.2f}]"
    return f"{age}: × {row['ratio']:.2f}{band}"


def _caption(means: pd.DataFrame) -> str:
    whole = means[means["age"] == ALL_AGES]
    return (
        "Mean entropy change of the update's own tokens against that of tokens which the step does "
        f"not use: n = {int(whole['steps'].max())} steps that have both; age: steps since the "
        "rollout. Dashed: y = x. × : ratio of the means; above 1 the own tokens overstate what "
        f"happened to the policy. Lines, brackets: 95 % interval ({whole['unit'].iloc[0]}). The "
        f"floor of a mean is far below that of a token.{style.left_out(means)}"
    )
