"""The entropy change that a method asked for, what it expected, and what happened."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("targets", "target_sums")
GOT, EXPECTED = style.PALETTE[0], style.PALETTE[1]


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A row per run. Left: along training; right: realised against expected change."""
    data, sums = tables["targets"], tables["target_sums"]
    runs = style.shown_runs(data)
    figure = style.new_figure(style.PAGE, 0.3 + 2.1 * len(runs))
    grid = figure.subplots(len(runs), 2, squeeze=False, width_ratios=[1.7, 1])
    for row, run in enumerate(runs):
        part = data[data["run"] == run]
        ends = part[["predicted", "realised", "target"]].abs().max().max()
        scale, unit = style.power_of_ten(float(ends))
        _along(grid[row, 0], part, scale, unit)
        _against(grid[row, 1], part, scale, unit)
        if len(runs) > 1:
            grid[row, 0].set_title(run)
    return style.Drawing(figure, _caption(data, sums, runs))


def _along(axes: Axes, data: pd.DataFrame, scale: float, unit: str) -> None:
    target = float(data["target"].iloc[0]) / scale
    axes.axhline(target, color=style.ink(), linewidth=0.9, linestyle=(0, (3, 2)), label="target")
    axes.plot(data["step"], data["predicted"] / scale, color=style.colour(EXPECTED), linewidth=0.9,
              linestyle=(0, (1, 1)), label="expected")  # fmt: skip
    shade = style.colour(GOT)
    axes.plot(data["step"], data["realised"] / scale, color=shade, linewidth=0.8)
    reached = data["feasible"] > 0
    for rows, face, label in (
        (data[reached], shade, "realised"), (data[~reached], style.paper(), "out of reach")
    ):  # fmt: skip
        if len(rows):
            axes.plot(rows["step"], rows["realised"] / scale, "o", color=shade, markersize=3,
                      markerfacecolor=face, label=label)  # fmt: skip
    axes.axhline(0, color=style.faint(), linewidth=0.6)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"dH of a step ({unit})")
    axes.legend(loc="upper left", ncols=2, fontsize=6.5)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    style.grid(axes)


def _against(axes: Axes, data: pd.DataFrame, scale: float, unit: str) -> None:
    x, y = data["predicted"] / scale, data["realised"] / scale
    ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
    axes.plot(ends, ends, color=style.faint(), linewidth=0.9, linestyle=(0, (3, 2)))
    reached = (data["feasible"] > 0).to_numpy()
    shade = style.colour(GOT)
    axes.plot(x[reached], y[reached], "o", color=shade, markersize=3)
    axes.plot(x[~reached], y[~reached], "o", color=shade, markersize=3,
              markerfacecolor=style.paper())  # fmt: skip
    axes.set_xlabel(f"expected ({unit})")
    axes.set_ylabel("realised")
    style.grid(axes, "both")


def _caption(data: pd.DataFrame, sums: pd.DataFrame, runs: list[str]) -> str:
    texts = []
    for row in sums[sums["run"].isin(runs)].to_dict("records"):
        band = ""
        if np.isfinite(row["missed_lo"]):
            band = f" [{row['missed_lo']:.2g}, {row['missed_hi']:.2g}]"
        name = f"{row['run']}, " if len(runs) > 1 else ""
        where = "within reach" if row["kind"] == "feasible" else "out of reach"
        texts.append(
            f"{name}{row['steps']} steps with the target {where}: realised − target "
            f"{row['missed']:.2g}{band} nats, mean over steps."
        )
    n = int(sums[sums["run"].isin(runs)].groupby("run")["steps"].sum().max())
    return (
        "Change of mean entropy that the method asked for (dashed), expected of its step (dots) "
        f"and got (dH_train): n = {n} steps. {' '.join(texts)} Hollow: steps from which the target "
        "could not be reached; the nearest end was taken. Right: dashed is y = x. Brackets: 95 % "
        f"interval ({sums['unit'].iloc[0]}). The floor of a mean over tokens is far below these "
        f"changes.{style.left_out(data)}"
    ).replace("-", "−")
