"""How dH is distributed, and where it lives: the tables distribution and plane."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.analysis.bins import (
    ENTROPY_EDGES,
    PROBABILITY_EDGES,
    entropy_names,
    probability_names,
)
from entropy_lab.analysis.tables import QUADRANTS, frame
from entropy_lab.analysis.token_sums import QUADRANT, KeyedSums, TrainRows, banded

# Edges of |dH| in nats, four a decade; smaller ones share the first bin, larger ones the last.
LOWEST, HIGHEST, A_DECADE = -8, 1, 4
_BINS = (HIGHEST - LOWEST) * A_DECADE + 1


def edges() -> np.ndarray:
    """Lower edges of the bins of |dH|, then infinity."""
    inner = 10.0 ** (LOWEST + np.arange(_BINS) / A_DECADE)
    return np.concatenate([[0.0], inner[1:], [np.inf]])


def distribution(rows: TrainRows | None, floor: float) -> pd.DataFrame:
    """Rows of the table `distribution`, without the run's name: bins with rows only.

    floor: noise floor of dH, nats; NaN where none was measured.
    """
    if rows is None:
        return frame("distribution", [])
    place = f"floor({A_DECADE} * (log10(greatest(abs(dH), 1e-300)) - {LOWEST}))"
    keys = {
        "region": QUADRANT,
        "bin": f"CASE WHEN dH = 0 THEN 0 ELSE sign(dH) * (1 + greatest(0, "
        f"least({_BINS - 1}, {place}))) END::INT",
    }
    data = rows.sums(keys, {"w": "1", "size": "abs(dH)"})
    parts = [(name, data[data["region"] == i]) for i, name in enumerate(QUADRANTS)]
    whole = float(data["size"].sum())
    found = []
    summed = data.groupby(["step", "grp", "bin"], as_index=False)[["n", "w", "size"]].sum()
    for region, part in [("all", summed), *parts]:
        if len(part):
            found.append(_region(rows, region, part, whole, floor))
    return frame("distribution", pd.concat(found, ignore_index=True))


def _region(
    rows: TrainRows, region: str, part: pd.DataFrame, whole: float, floor: float
) -> pd.DataFrame:
    sums = KeyedSums.of(part, "bin", ("n", "w", "size"), rows.steps)
    bins = np.array(sums.keys)
    at, edge = np.maximum(np.abs(bins) - 1, 0), edges()
    size = sums.total("size")
    return pd.DataFrame(
        {
            "region": region,
            "sign": np.sign(bins),
            "lo": np.where(bins == 0, 0.0, edge[at]),
            "hi": np.where(bins == 0, 0.0, edge[at + 1]),
            "n": sums.total("n").astype(np.int64),
            "steps": len(rows.steps),
            **banded("share", sums.ratio("w", "w", of_all=True)),
            "abs_share": size / whole if whole > 0 else np.full(len(size), np.nan),
            "floor": floor,
            "unit": rows.unit,
        }
    )


def plane(rows: TrainRows | None) -> pd.DataFrame:
    """Rows of the table `plane`, without the run's name: cells with rows only."""
    if rows is None:
        return frame("plane", [])
    p = _bin("logp", [float(np.log(e)) for e in PROBABILITY_EDGES[1:-1]])
    h = _bin("entropy", ENTROPY_EDGES[1:-1])
    names = [
        (sign, probability, entropy)
        for sign in ("A < 0", "A = 0", "A > 0")
        for probability in probability_names()
        for entropy in entropy_names()
    ]
    across = len(entropy_names())
    key = f"((sign(advantage)::INT + 1) * {len(probability_names())} + {p}) * {across} + {h}"
    likely = "(logp > -entropy)::INT"
    data = rows.sums({"cell": key}, {"w": "1", "y": "dH", "likely": likely})
    sums = KeyedSums.of(data, "cell", ("n", "w", "y", "likely"), rows.steps)
    cells = [names[int(k)] for k in sums.keys]
    weight = sums.total("w")
    table = pd.DataFrame(
        {
            "sign": [c[0] for c in cells],
            "probability": [c[1] for c in cells],
            "entropy": [c[2] for c in cells],
            "n": sums.total("n").astype(np.int64),
            "steps": len(rows.steps),
            "share": weight / weight.sum(),
            **banded("dH", sums.ratio("y", "w")),
            **banded("contribution", sums.ratio("y", "w", of_all=True)),
            "likely": sums.total("likely") / weight,
            "unit": rows.unit,
        }
    )
    return frame("plane", table)


def _bin(column: str, inner: list[float] | tuple[float, ...]) -> str:
    """SQL for how many of the inner edges are <= the column, compared as its float32."""
    return "(" + " + ".join(f"({column} >= {e!r}::FLOAT)::INT" for e in inner) + ")"
