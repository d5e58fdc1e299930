"""pass@k on held-out problems against the entropy of training: the table pass_at_k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.analysis.curves import running_mean
from entropy_lab.analysis.seeds import Indices, mean_over_seeds
from entropy_lab.analysis.tables import frame
from entropy_lab.record import Run

NAME = "evals.parquet"
SETTINGS = ("benchmark", "step", "n", "k", "temperature", "top_p", "max_tokens")
SCORES = ("avg_at_k", "pass_at_k")
OPTIONAL = ("samples", "pass_at_k_se", "entropy")  # NaN where evals.parquet lacks them
MEANS = (*SCORES, "entropy", "train_entropy")


def pass_at_k(run: Run, rows: pd.DataFrame, name: str, method: str) -> tuple[pd.DataFrame, str]:
    """(the run's rows; what to warn of, "" for nothing). `rows` are its steps.

    Empty for a run that was never evaluated. train_entropy is that of the policy that was
    evaluated, which took its step's number of steps: the running mean over steps, the last one
    after the last step. entropy is the evaluation's own, on the held-out responses.
    """
    path = run.path / NAME
    if not path.exists():
        return frame("pass_at_k", []), ""
    try:
        data = pq.ParquetFile(path).read().to_pandas()
    except (OSError, pa.ArrowException) as error:
        return frame("pass_at_k", []), f"skipped {NAME}: damaged ({str(error).splitlines()[0]})"
    missing = [name for name in (*SETTINGS, *SCORES) if name not in data]
    if missing:
        return frame("pass_at_k", []), f"skipped {NAME}: it has no column {missing[0]!r}"
    known = rows[["step", "entropy_token_mean"]].dropna()
    data = data.reindex(columns=[*SETTINGS, *SCORES, *OPTIONAL])
    data = data.assign(level="run", name=name, method=method, seeds=1, train_entropy=np.nan)
    if len(known):
        data["train_entropy"] = np.interp(
            data["step"], known["step"], running_mean(known["entropy_token_mean"])
        )
    return frame("pass_at_k", data), ""


def over_seeds(table: pd.DataFrame, draws: Mapping[str, Indices]) -> pd.DataFrame:
    """`pass_at_k` of several runs with rows for each method after them, means over its runs."""
    columns, keys = list(MEANS), ["method", *SETTINGS, "samples"]
    rows: list[dict[str, Any]] = []
    for (method, *setting), data in table.groupby(keys, sort=False, dropna=False):
        picked = draws[str(method)]
        each = data.groupby("name", sort=False)[columns].mean()  # evaluated twice is one run
        # A run without this evaluation keeps its place among the seeds that are drawn.
        values = np.full((picked.shape[1], len(columns)), np.nan)
        values[: len(each)] = each.to_numpy(np.float64)
        mean, low, high, seeds = mean_over_seeds(values, picked)
        row = dict(zip(keys[1:], setting, strict=True))
        row |= {"level": "method", "name": method, "method": method, "seeds": int(seeds[0])}
        for i, name in enumerate(columns):
            row |= {name: mean[i], f"{name}_lo": low[i], f"{name}_hi": high[i]}
        rows.append(row)
    if not rows:
        return table
    return frame("pass_at_k", pd.concat([table, pd.DataFrame(rows)], ignore_index=True))
