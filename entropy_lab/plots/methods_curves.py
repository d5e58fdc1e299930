"""Entropy and reward of every method over its seeds, a panel each, beside the baseline."""

from __future__ import annotations

import pandas as pd

from entropy_lab.plots import style
from entropy_lab.plots.multiples import small_multiples

NEEDS = ("method_curves", "methods")
PANELS = (("entropy", "Entropy, nats per token"), ("reward", "Reward"))


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Mean over seeds with its interval; grey: the other methods, black: the baseline."""
    data, methods = tables["method_curves"], tables["methods"]
    names = list(methods["method"])
    shown = [(m, title) for m, title in PANELS if (data["metric"] == m).any()]
    single = list(methods["method"][methods["seeds"] == 1])
    baseline = str(methods["baseline"].iloc[0])
    figure = small_multiples(data, names, baseline, shown, _axis(methods), single)
    for block, (metric, _) in zip(figure.subfigs, shown, strict=True):
        if metric == "entropy":
            block.axes[0].set_ylim(bottom=0)
    return style.Drawing(figure, _caption(methods))


def _axis(methods: pd.DataFrame) -> str:
    return "optimizer step" if methods["axis"].iloc[0] == "step" else "rollout"


def _caption(methods: pd.DataFrame) -> str:
    seeds, baseline = methods["seeds"], methods["baseline"].iloc[0]
    span = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    single = " A method of one seed has no band." if seeds.min() == 1 else ""
    return (
        f"Running means over nine values, mean over seeds: n = {seeds.sum()} runs of "
        f"{len(methods)} methods, {span} seeds each, aligned on the {_axis(methods)}; a curve ends "
        f"with the method's shortest run. Bands: 95 % interval at each value (bootstrap over "
        f"seeds within a method).{single} Dashed: {baseline}; grey: the other methods."
    )
