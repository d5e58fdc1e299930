"""Mean entropy change by the token's probability and its position's entropy, by sign of A."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from entropy_lab.analysis.bins import entropy_names, probability_names
from entropy_lab.plots import style
from entropy_lab.plots.regions import range_text

NEEDS = ("plane",)
SIGNS = ("A > 0", "A < 0")
_TOO_FEW = 20  # rows below which a cell has no number worth printing


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """One map per sign of the advantage: colour and number are the mean dH of a cell."""
    data = tables["plane"]
    runs = style.shown_runs(data)
    figure = style.new_figure(style.PAGE, 0.4 + 2.5 * len(runs))
    grid = figure.subplots(len(runs), 2, squeeze=False, sharey=True)
    known = data[(data["n"] >= _TOO_FEW) & data["sign"].isin(SIGNS)]
    largest = float(known["dH"].abs().max()) if len(known) else 0.0
    scale, unit = style.power_of_ten(largest)
    norm = Normalize(-max(largest, 1e-300) / scale, max(largest, 1e-300) / scale)
    images = []
    for row, run in enumerate(runs):
        for axes, sign in zip(grid[row], SIGNS, strict=True):
            here = data[(data["run"] == run) & (data["sign"] == sign)]
            images.append(_map(axes, here, scale, norm))
            axes.set_title(sign if len(runs) == 1 else f"{run} · {sign}")
            axes.set_xlabel("probability of the token")
        grid[row, 0].set_ylabel("entropy, nats")
    bar = figure.colorbar(images[0], ax=grid, fraction=0.03, pad=0.015, aspect=30)
    bar.set_label(f"mean dH ({unit})")
    bar.outline.set_visible(False)
    return style.Drawing(figure, _caption(data, unit))


def _map(axes: Axes, data: pd.DataFrame, scale: float, norm: Normalize):
    across, up = probability_names(), entropy_names()
    mean, likely = (np.full((len(up), len(across)), np.nan) for _ in range(2))
    for cell in data.to_dict("records"):
        at = up.index(cell["entropy"]), across.index(cell["probability"])
        likely[at] = cell["likely"]
        if cell["n"] < _TOO_FEW:
            axes.text(at[1], at[0], "·", ha="center", va="center", color=style.faint())
            continue
        mean[at] = cell["dH"] / scale
        known = cell["dH_lo"] > 0 or cell["dH_hi"] < 0
        text = style.number(mean[at], 1 if abs(mean[at]) >= 0.95 else 2)
        axes.text(
            at[1], at[0], f"{text}\n{100 * cell['share']:.1f} %", ha="center", va="center",
            fontsize=5.6, linespacing=1.1, weight="bold" if known else "normal",
            color=style.ink() if abs(norm(mean[at]) - 0.5) < 0.34 else style.paper(),
        )  # fmt: skip
    image = axes.imshow(
        mean, origin="lower", aspect="auto", cmap=style.diverging_colours(), norm=norm
    )
    _boundary(axes, likely)
    axes.set_xticks(range(len(across)), [range_text(n) for n in across], fontsize=6)
    axes.set_yticks(range(len(up)), [range_text(n) for n in up], fontsize=6)
    axes.tick_params(length=0)
    return image


def _boundary(axes: Axes, likely: np.ndarray) -> None:
    """A line between cells most of whose tokens have log pi > -H and the others."""
    side = np.where(np.isnan(likely), np.nan, likely > 0.5)
    look = {"color": style.ink(), "linewidth": 1.1}
    for i, j in np.ndindex(side.shape):
        if j + 1 < side.shape[1] and abs(side[i, j] - side[i, j + 1]) == 1:
            axes.plot([j + 0.5] * 2, [i - 0.5, i + 0.5], **look)
        if i + 1 < side.shape[0] and abs(side[i, j] - side[i + 1, j]) == 1:
            axes.plot([j - 0.5, j + 0.5], [i + 0.5] * 2, **look)


def _caption(data: pd.DataFrame, unit: str) -> str:
    rows = data.groupby("run")["n"].sum().max()
    plain = unit.replace("$10^{", "1e").replace("}$", "")
    return (
        f"Mean entropy change of a token (upper number, {plain}; blue lowers, orange raises it) "
        "and share of all tokens (lower number) by probability, entropy and sign of the "
        f"advantage: n = {rows:,} token rows of {data['steps'].max()} steps. Black line: between "
        "mostly likely tokens (log π > −H, right) and unlikely ones. Bold: the 95 % interval "
        f"({data['unit'].iloc[0]}) leaves 0 out; a dot: fewer than {_TOO_FEW} rows, empty: none. "
        "Tokens with A = 0 are not shown. Noise floor: see change_distribution."
        f"{style.left_out(data)}"
    )
