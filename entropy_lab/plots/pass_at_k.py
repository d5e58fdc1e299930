"""The chance of a right response among k, against k, for every method and benchmark."""

from __future__ import annotations

import pandas as pd

from entropy_lab.plots import style
from entropy_lab.plots.evaluated import baseline_of, caption_of, evaluations
from entropy_lab.plots.multiples import small_multiples

NEEDS = ("pass_at_k",)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A block of panels per benchmark, a panel per method; the last evaluation of each."""
    data = evaluations(tables["pass_at_k"])
    ends = data.groupby(["method", "benchmark"])["step"].transform("max")
    last = data[data["step"] == ends]
    curves = last.rename(columns={"benchmark": "metric", "k": "at", "pass_at_k": "mean"})
    curves = curves.rename(columns={f"pass_at_k_{e}": f"mean_{e}" for e in ("lo", "hi")})
    names = [str(m) for m in dict.fromkeys(data["method"])]
    benchmarks = [(str(b), f"pass@k, {b}") for b in dict.fromkeys(data["benchmark"])]
    figure = small_multiples(
        curves, names, baseline_of(names), benchmarks, "k", powers_of_two=True,
        single=[n for n in names if last.loc[last["method"] == n, "seeds"].max() == 1],
    )  # fmt: skip
    text = "Chance that one of k responses is right (unbiased estimate from all samples)"
    return style.Drawing(figure, caption_of(last, names, text))
