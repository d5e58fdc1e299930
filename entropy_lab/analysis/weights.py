"""What a normalised weight comes down to: the tables weight_steps and weights.

STEER's weight is exp(-k |Omega|) with k from the largest |Omega|: where one token is far out, all
others keep a weight near 1. So a step's weights and the tail of its |Omega| are told together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from entropy_lab.analysis import over_steps
from entropy_lab.analysis.tables import PREDICTOR_PREFIX, frame
from entropy_lab.analysis.token_sums import TrainRows
from entropy_lab.analysis.words import text_of

PINNED = 0.99  # of the step's largest weight
RARE = 0.1  # probability below which a token counts as rare
OMEGA = f"{PREDICTOR_PREFIX}steer"
_EQUAL = 1e-6  # weights closer than this are equal


def weight_tables(
    rows: TrainRows | None, texts: Sequence[str | None], method: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(weight_steps, weights), without the run's name; `rows` have weight and OMEGA."""
    if rows is None:
        return frame("weight_steps", []), frame("weights", [])
    data = rows.frame(_STEPS)
    data = data.assign(
        varies=data["weight_max"] - data["weight_min"] > _EQUAL,
        argmax_probability=np.exp(data["argmax_logp"]),
        argmax_text=[text_of(texts, int(t)) for t in data["argmax_token"]],
    )
    steps = frame("weight_steps", data)[[*frame("weight_steps", []).columns]]
    return steps, frame("weights", [_row(data, method)] if len(data) else [])


_STEPS = f"""
    SELECT r.step, count(*) AS n, avg((r.weight >= {PINNED} * m.most)::INT) AS pinned,
        avg(r.weight) AS weight_mean, min(r.weight) AS weight_min, any_value(m.most) AS weight_max,
        CASE WHEN quantile_cont(abs({OMEGA}::DOUBLE), 0.99) > 0 THEN
            max(abs({OMEGA}::DOUBLE)) / quantile_cont(abs({OMEGA}::DOUBLE), 0.99) END AS omega_peak,
        arg_max(r.token_id, abs({OMEGA})) AS argmax_token,
        arg_max(r.logp, abs({OMEGA})) AS argmax_logp
    FROM rows r JOIN (
        SELECT step, max(weight) AS most FROM rows
        WHERE advantage <> 0 AND isfinite(weight) GROUP BY 1
    ) m ON r.step = m.step
    WHERE r.advantage <> 0 AND isfinite(r.weight) AND isfinite({OMEGA})
    GROUP BY 1 ORDER BY 1
"""


def _row(data: pd.DataFrame, method: str) -> dict:
    moved = data[data["varies"]]
    row = {
        "method": method, "steps": len(data), "n": int(data["n"].sum()),
        "varying_steps": len(moved), "unit": over_steps.unit(len(data)),
    }  # fmt: skip
    for name in ("pinned", "weight_mean"):
        row |= _banded(name, moved[name], over_steps.mean)
    row |= _banded("omega_peak", data["omega_peak"].dropna(), over_steps.median)
    rare = (data["argmax_probability"] < RARE).astype(float)
    return row | _banded("argmax_rare", rare, over_steps.mean)


def _banded(name: str, values: pd.Series, statistic) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys((name, f"{name}_lo", f"{name}_hi"), float("nan"))
    found = over_steps.over_steps(values.to_numpy(np.float64)[:, None], statistic)
    return {f"{name}{end}": float(v[0]) for end, v in zip(("", "_lo", "_hi"), found, strict=True)}
