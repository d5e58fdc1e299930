"""What each method's own step from the same states did to entropy, against the baseline's."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("replay_pairs",)
TITLES = {"dH_train": "dH, own tokens", "dH_heldout": "dH, held-out", "kl": "KL of a step"}
UNIT = 1e-3  # nats: what the axes count in


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """One panel per quantity: the paired difference of every method with its interval."""
    data = tables["replay_pairs"]
    baseline, most = str(data["baseline"].iloc[0]), int(data["steps"].max())
    panels = [(most, metric) for metric in TITLES]
    if most > 1:
        panels.insert(0, (1, "dH_train"))
    others = data[data["method"] != baseline]
    order = others[(others["steps"] == most) & (others["metric"] == "dH_train")]
    names = [str(n) for n in order.sort_values("difference")["method"]]
    place = np.arange(len(names))
    figure = style.new_figure(style.PAGE, 0.9 + 0.19 * max(3, len(names)))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (steps, metric) in zip(grid, panels, strict=True):
        rows = others[(others["steps"] == steps) & (others["metric"] == metric)]
        _forest(axes, rows.set_index("method").reindex(names), place, np.asarray(names))
        axes.set_title(TITLES[metric] + (f"\n{_steps(steps)}" if most > 1 else ""))
        axes.set_xlabel(f"minus {baseline}\n(1e-3 nats)")
        style.grid(axes, "x")
    grid[0].set_yticks(place, names)
    for axes in grid:
        axes.tick_params(axis="y", length=0)
    return style.Drawing(figure, _caption(data, baseline))


def _steps(steps: int) -> str:
    return "first step" if steps == 1 else f"{steps} steps"


def _forest(axes: Axes, rows: pd.DataFrame, place: np.ndarray, names: np.ndarray) -> None:
    axes.axvline(0, color=style.faint(), linewidth=0.8)
    for y, name in zip(place, names, strict=True):
        row = rows.loc[name, ["difference", "difference_lo", "difference_hi"]]
        middle, low, high = row.to_numpy(dtype=np.float64) / UNIT
        shade = style.colour(style.LOWERS if middle < 0 else style.RAISES)
        known = low > 0 or high < 0
        axes.hlines(y, low, high, color=shade, linewidth=1.4)
        axes.plot(middle, y, "o", color=shade, markersize=4,
                  markerfacecolor=shade if known else "none")  # fmt: skip


def _caption(data: pd.DataFrame, baseline: str) -> str:
    own = data[(data["method"] == baseline) & (data["metric"] == "dH_train")].set_index("steps")
    changes = " and ".join(f"{row['mean']:.2e} in {_steps(int(n))}" for n, row in own.iterrows())  # type: ignore[arg-type]
    return (
        f"Every method takes its own steps from the same weights, optimizer state and responses: "
        f"n = {data['n'].max()} states; difference of each method to {baseline}, whose own steps "
        f"change entropy by {changes}, nats a token. Filled: the 95 % interval "
        f"({data['unit'].iloc[0]}) leaves 0 out. Right of 0, dH: entropy falls less."
    )
