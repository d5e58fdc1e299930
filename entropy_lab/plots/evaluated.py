"""What the figures of evaluations share: whose rows, which baseline, what the caption says."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

BASELINE = "grpo"


def evaluations(passes: pd.DataFrame) -> pd.DataFrame:
    """Rows of pass_at_k over seeds where there are any, else those of the runs."""
    over = passes[passes["level"] == "method"]
    return over if len(over) else passes[passes["level"] == "run"]


def baseline_of(names: Sequence[str]) -> str:
    """The first label whose method is BASELINE, else the first of all."""
    return next((n for n in names if n.split(" ")[0] == BASELINE), names[0])


def caption_of(data: pd.DataFrame, names: Sequence[str], what: str) -> str:
    """`what`, then how many problems, samples and seeds, and what the bands are."""
    runs = data.groupby("method")["seeds"].max()
    n = data.drop_duplicates("benchmark")
    sets = "; ".join(
        f"{r['benchmark']}: {r['n']:g} problems"
        + (f" × {r['samples']:g} responses" if r["samples"] == r["samples"] else "")
        for r in n.to_dict("records")
    )
    seeds = "1 seed" if runs.max() == 1 else f"{runs.min():g} to {runs.max():g} seeds"
    seeds = f"{runs.max():g} seeds" if 1 < runs.min() == runs.max() else seeds
    band = (
        "No bands: a single seed has no interval over seeds."
        if runs.max() == 1
        else "Bands: 95 % interval (bootstrap over seeds within a method), without the "
        "uncertainty about the problems."
    )
    others = f" Dashed: {baseline_of(names)}; grey: the other methods." if len(names) > 1 else ""
    return (
        f"{what}: n = {int(runs.sum())} runs of {len(names)} methods, {seeds} each ({sets}). "
        f"{band}{others} No floor: nothing but right and wrong is counted."
    )
