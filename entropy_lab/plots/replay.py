"""What each method's own step from the same states did to entropy, against the baseline's."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.plots import style

NEEDS = ("replay_pairs",)
PANELS = {
    "dH_train": "own tokens, dH (nats)",
    "dH_heldout": "held-out tokens, dH (nats)",
    "kl": "KL of the step (nats)",
}


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """One panel per quantity: the paired difference of every method with its interval."""
    data = tables["replay_pairs"]
    baseline = str(data["baseline"].iloc[0])
    order = data[(data["metric"] == "dH_train") & (data["method"] != baseline)]
    names = [str(n) for n in order.sort_values("difference")["method"]]
    place = np.arange(len(names))
    figure = style.new_figure(style.PAGE, 0.8 + 0.19 * max(3, len(names)))
    grid = figure.subplots(1, len(PANELS), squeeze=False, sharey=True)[0]
    for axes, (metric, title) in zip(grid, PANELS.items(), strict=True):
        rows = data[data["metric"] == metric].set_index("method").reindex(names)
        _forest(axes, rows, place, np.asarray(names))
        axes.set_title(title)
        axes.set_xlabel(f"difference to {baseline}")
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
        style.grid(axes, "x")
    grid[0].set_yticks(place, names)
    for axes in grid:
        axes.tick_params(axis="y", length=0)
    return style.Drawing(figure, _caption(data, baseline))


def _forest(axes: Axes, rows: pd.DataFrame, place: np.ndarray, names: np.ndarray) -> None:
    axes.axvline(0, color=style.faint(), linewidth=0.8)
    for y, name in zip(place, names, strict=True):
        row = rows.loc[name]
        shade = style.colour(style.LOWERS if row["difference"] < 0 else style.RAISES)
        known = row["difference_lo"] > 0 or row["difference_hi"] < 0
        axes.hlines(y, row["difference_lo"], row["difference_hi"], color=shade, linewidth=1.4)
        axes.plot(
            row["difference"], y, "o", color=shade, markersize=4,
            markerfacecolor=shade if known else "none",
        )  # fmt: skip


def _caption(data: pd.DataFrame, baseline: str) -> str:
    mean = data[(data["method"] == baseline) & (data["metric"] == "dH_train")]["mean"]
    return (
        f"Every method takes its own step from the same weights, optimizer state and responses: "
        f"n = {data['n'].max()} states; difference of each method to {baseline}, whose own step "
        f"changes entropy by {mean.iloc[0]:.2e} nats a token. Filled: the 95 % interval "
        f"({data['unit'].iloc[0]}) leaves 0 out. Right of 0: entropy falls less."
    )
