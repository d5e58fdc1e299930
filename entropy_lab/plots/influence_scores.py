"""How well each closed form says which token's push moved the entropy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from entropy_lab.analysis.tables import CLOSED_FORMS, TARGETS
from entropy_lab.plots import style

NEEDS = ("influence",)
PEARSON, SPEARMAN = style.PALETTE[0], style.PALETTE[1]
HELD = ("dH", "influence_marginal")  # targets whose largest changes a method would pick
PATH_FORMS = ("head", "last_block", "jvp_grad", "jvp", "second_order")


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """One panel per target with PCC and SRCC; the last two: what the top 1 % of the tokens hold."""
    data = tables["influence"]
    data = data[~data["predictor"].isin(PATH_FORMS)]
    runs = list(dict.fromkeys(data["run"]))
    names = list(dict.fromkeys(zip(data["kind"], data["predictor"], strict=True)))
    place = np.array([-i - 0.5 * (kind != "form") for i, (kind, _) in enumerate(names)])
    figure = style.new_figure(style.PAGE, 0.5 + max(1, len(runs)) * (0.4 + 0.17 * len(names)))
    panels = len(TARGETS) + len(HELD)
    grid = figure.subplots(max(1, len(runs)), panels, squeeze=False, sharex="col", sharey=True)
    for row, run in enumerate(runs):
        for axes, target in zip(grid[row], TARGETS, strict=False):
            here = data[(data["run"] == run) & (data["target"] == target)]
            _correlations(axes, _in_order(here, names), place)
            _title(axes, "correlation with", target, run if len(runs) > 1 else "")
        for axes, target in zip(grid[row, len(TARGETS) :], HELD, strict=True):
            _capture(axes, _in_order(data[data["run"] == run], names, target), place)
            _title(axes, "top 1 % hold of", target)
        grid[row, 0].set_yticks(place, [_label(*name) for name in names])
        for axes in grid[row]:
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelbottom=True)
            style.grid(axes, "x")
    return style.Drawing(figure, _caption(data, len(runs)))


def _title(axes: Axes, what: str, target: str, run: str = "") -> None:
    lines = [run, what, target] if run else [what, target]
    axes.set_title("\n".join(lines), fontsize=7)


def _in_order(
    data: pd.DataFrame, names: list[tuple[str, str]], target: str | None = None
) -> pd.DataFrame:
    if target is not None:
        data = data[data["target"] == target]
    return data.set_index(["kind", "predictor"]).reindex(pd.MultiIndex.from_tuples(names))


def _label(kind: str, name: str) -> str:
    return name if kind == "form" else f"{name} / push"


def _correlations(axes: Axes, data: pd.DataFrame, place: NDArray[np.float64]) -> None:
    for name, hue, shift in (("pcc", PEARSON, 0.15), ("srcc", SPEARMAN, -0.15)):
        shade = style.colour(hue)
        axes.hlines(place + shift, data[f"{name}_lo"], data[f"{name}_hi"], color=shade)
        axes.plot(data[name], place + shift, "o", color=shade, markersize=3.5)
    axes.axvline(0, color=style.faint(), linewidth=0.8)


def _capture(axes: Axes, data: pd.DataFrame, place: NDArray[np.float64]) -> None:
    axes.barh(place, data["oracle"], height=0.62, color=style.faint(), alpha=0.25)
    axes.barh(place, data["capture"], height=0.62, color=style.colour(PEARSON))
    axes.hlines(place, data["capture_lo"], data["capture_hi"], color=style.ink(), linewidth=0.9)
    axes.set_xlim(left=0)


def _caption(data: pd.DataFrame, runs: int) -> str:
    if data.empty:
        return "No influence was recorded."
    forms = [name for name in CLOSED_FORMS if name in set(data["predictor"])]
    return (
        f"What {len(forms)} closed forms say of the change of a token (dH), of what its own push "
        "added to the mean entropy (influence) and of what reweighting it would change "
        f"(influence_marginal): n = {data['n'].max():,} token rows of {data['steps'].max()} deep "
        f"steps{f' in the largest of {runs} runs' if runs > 1 else ''}, medians over steps. "
        "Blue: Pearson, orange: Spearman. "
        "“/ push”: the form per unit of the token's push, without advantage, ratio, clip. Right: "
        "share of the sum of |dH| and of |influence_marginal| in the 1 % of the tokens with the "
        "largest |score|; grey: the most that 1 % can hold. Lines: 95 % interval "
        f"({data['unit'].iloc[0]})."
    )
