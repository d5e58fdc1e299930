"""Methods by benchmarks, of the last evaluation of every run: the table benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from entropy_lab.analysis.bootstrap import LEVEL
from entropy_lab.analysis.methods import unit
from entropy_lab.analysis.seeds import mean_over_seeds, stratified
from entropy_lab.analysis.tables import frame

AVERAGE = "average"
PROBLEMS = "problems (1 seed)"
MADE_HERE = "made here"
_FACTS = ("step", "n", "samples", "temperature", "top_p", "max_tokens")


def model_name(info: Mapping[str, Any]) -> str:
    """The model of a run as its settings name it, without folders; MADE_HERE for a small one."""
    section = (info.get("config") or {}).get("model")
    path = section.get("path") if isinstance(section, Mapping) else None
    return PurePath(str(path)).name if path else MADE_HERE


def benchmarks(passes: pd.DataFrame, models: Mapping[str, str]) -> pd.DataFrame:
    """Rows of the table `benchmarks` from the rows of pass_at_k that are of runs.

    models: run -> model; runs of different models are different rows. Intervals: bootstrap over
    seeds; of a single seed, over problems, from the standard error of pass@1. The average weighs
    benchmarks equally and is of the runs that have all of them.
    """
    runs = passes[passes["level"] == "run"] if len(passes) else passes
    if not len(runs):
        return frame("benchmarks", [])
    runs = runs.assign(model=[models.get(str(n), MADE_HERE) for n in runs["name"]])
    ends = runs.groupby(["name", "benchmark"])["step"].transform("max")
    last = runs[runs["step"] == ends].sort_values("k", kind="stable")
    last = last.drop_duplicates(["name", "benchmark"])  # its smallest k, where pass@1 is
    arms = last[["model", "method"]].drop_duplicates()
    each = [(m, a, last[(last["model"] == m) & (last["method"] == a)]) for m, a in arms.to_numpy()]
    draws = stratified(Counter({f"{m} {a}": d["name"].nunique() for m, a, d in each}))
    rows = []
    for model, method, data in each:
        rows += _arm(data, draws[f"{model} {method}"], {"model": model, "method": method})
    return frame("benchmarks", rows)


def _arm(data: pd.DataFrame, picked: np.ndarray, common: dict[str, Any]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(data["name"]))
    titles = list(dict.fromkeys(data["benchmark"]))
    scores = data.pivot(index="name", columns="benchmark", values="avg_at_k")
    scores = scores.reindex(index=names, columns=titles).to_numpy(np.float64)
    values = np.column_stack([scores, scores.mean(axis=1)]) if len(titles) > 1 else scores
    mean, low, high, seeds = mean_over_seeds(values, picked)
    rows = []
    for i, title in enumerate([*titles, AVERAGE][: values.shape[1]]):
        part = data[data["benchmark"] == title] if title != AVERAGE else data
        row = {**common, "benchmark": title, "seeds": int(seeds[i]), "unit": unit(int(seeds[i]))}
        row |= {"accuracy": mean[i], "accuracy_lo": low[i], "accuracy_hi": high[i]}
        facts = part[list(_FACTS)]
        row |= {f: facts[f].iloc[0] for f in _FACTS if facts[f].nunique(dropna=False) == 1}
        rows.append(row | (_problems(part, mean[i]) if seeds[i] == 1 else {}))
    return rows


def _problems(part: pd.DataFrame, mean: float) -> dict[str, Any]:
    """The interval over problems of one run: t of n - 1 degrees; {} without standard errors."""
    first = part[part["k"] == 1].drop_duplicates("benchmark")
    error, n = first["pass_at_k_se"].to_numpy(np.float64), first["n"].to_numpy(np.float64)
    if len(first) < part["benchmark"].nunique() or not np.isfinite(error).all() or n.min() < 2:
        return {}
    reach = -stdtrit(n.min() - 1, (1 - LEVEL) / 2) * np.sqrt((error**2).sum()) / len(error)
    return {"accuracy_lo": mean - reach, "accuracy_hi": mean + reach, "unit": PROBLEMS}
