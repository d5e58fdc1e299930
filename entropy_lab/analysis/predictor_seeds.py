"""How well each form predicts, over the runs of a method: the seed is the unit of such a claim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from entropy_lab.analysis.seeds import Indices, mean_over_seeds
from entropy_lab.analysis.tables import frame

MEASURES = ("pcc", "srcc", "sign", "mse")  # influence has no mse: another unit


def predictor_seeds(
    validation: pd.DataFrame,
    influence: pd.DataFrame,
    method_of: Mapping[str, str],
    draws: Mapping[str, Indices],
) -> pd.DataFrame:
    """Mean over a method's runs of each form's within-step PCC, SRCC, sign agreement and MSE.

    Against dH (the rows of `validation`, all tokens) and against influence_marginal (those of
    `influence`). method_of: run -> method, runs in order; draws: of `stratified`. Intervals are
    over seeds, none for one run. Empty where no token rows were read.
    """
    rows: list[dict[str, Any]] = []
    for target, kind, table in _targets(validation, influence):
        for (method, predictor), data in table.assign(
            method=table["run"].map(dict(method_of))
        ).groupby(["method", "predictor"], sort=False):
            picked = draws[str(method)]
            # A run without this form keeps its place among the seeds that are drawn.
            values = np.full((picked.shape[1], len(MEASURES)), np.nan)
            values[: len(data)] = data.reindex(columns=list(MEASURES)).to_numpy(np.float64)
            mean, low, high, seeds = mean_over_seeds(values, picked)
            row = {"method": method, "target": target, "kind": kind, "predictor": predictor}
            row |= {"seeds": int(seeds[0]), "n": int(data["n"].sum())}
            for i, name in enumerate(MEASURES):
                row |= {name: mean[i], f"{name}_lo": low[i], f"{name}_hi": high[i]}
            rows.append(row)
    return frame("predictor_seeds", rows)


def _targets(
    validation: pd.DataFrame, influence: pd.DataFrame
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    if len(validation):
        chosen = (validation["scope"] == "within_step") & (validation["stratum"] == "all")
        yield "dH", "form", validation[chosen]
    if len(influence):
        marginal = influence[influence["target"] == "influence_marginal"]
        for kind, data in marginal.groupby("kind", sort=False):
            yield "influence_marginal", str(kind), data
