"""Held-out accuracy and training entropy along training, for every method."""

from __future__ import annotations

import pandas as pd

from entropy_lab.plots import style
from entropy_lab.plots.evaluated import baseline_of, caption_of, evaluations
from entropy_lab.plots.multiples import small_multiples

NEEDS = ("pass_at_k",)
ALSO = ("method_curves",)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A block for the accuracy on each benchmark and one for the entropy; a panel per method."""
    data = evaluations(tables["pass_at_k"])
    data = data[data["k"] == data.groupby(["method", "benchmark"])["k"].transform("min")]
    names = [str(m) for m in dict.fromkeys(data["method"])]
    first = str(data["benchmark"].iloc[0])
    parts = [_curve(data, "avg_at_k")]
    whole = _whole_curves(tables.get("method_curves", pd.DataFrame()), names)
    evaluated = _curve(data[data["benchmark"] == first], "train_entropy", "entropy")
    parts.append(whole if len(whole) else evaluated)
    blocks = [(str(b), f"Accuracy, {b}") for b in dict.fromkeys(data["benchmark"])]
    blocks.append(("entropy", "Training entropy, nats per token"))
    figure = small_multiples(
        pd.concat(parts), names, baseline_of(names), blocks, "optimizer step",
        single=[n for n in names if data.loc[data["method"] == n, "seeds"].max() == 1],
    )  # fmt: skip
    where = "" if len(whole) else " at each evaluation"
    text = f"Share of right responses and running mean of the training entropy{where}"
    return style.Drawing(figure, caption_of(data, names, text))


def _whole_curves(curves: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Entropy at every step, where the methods are aligned on steps and all have it."""
    if not len(curves) or curves["axis"].iloc[0] != "step":
        return pd.DataFrame()
    part = curves[(curves["metric"] == "entropy") & curves["method"].isin(names)]
    return part if set(names) <= set(part["method"]) else pd.DataFrame()


def _curve(data: pd.DataFrame, column: str, metric: str = "") -> pd.DataFrame:
    names = {"step": "at", column: "mean", f"{column}_lo": "mean_lo", f"{column}_hi": "mean_hi"}
    kept = data[["method", "benchmark", *names]].rename(columns=names)
    return kept.assign(metric=metric or kept["benchmark"])
