"""Where the entropy change lives: the tables quadrants and regions, and the densities."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.bins import (
    ENTROPY_EDGES,
    PROBABILITY_EDGES,
    entropy_names,
    probability_names,
)
from entropy_lab.analysis.rows import BASE, FORM
from entropy_lab.analysis.scan import Scan
from entropy_lab.analysis.side import DENSITY_BINS as BINS
from entropy_lab.analysis.statistics import ratio
from entropy_lab.analysis.tables import QUADRANTS, frame, records
from entropy_lab.analysis.validate import Padded

Array = NDArray[np.float64]
_N, _W, _WY, _, _WAY, _WH, _, _WD = range(len(BASE))


def quadrants(found: Scan) -> pd.DataFrame:
    """Mean dH and mean prediction of each quadrant, and what each adds to the step mean.

    Over all probed steps from `first` on, rows weighted by 1 / inclusion probability.
    """
    padded = Padded.of(found.train, found.first)
    if not padded.at:
        return frame("quadrants", [])
    whole = padded.cells(0)
    rows = []
    columns = {"dH": _WY} | {p: len(BASE) + len(FORM) * k for k, p in enumerate(found.predictors)}
    for name in QUADRANTS:
        cells = padded.cells(found.train.strata.index(name))
        total = cells.sum(axis=(0, 1))
        if not total[_N]:
            continue
        for quantity, column in columns.items():
            here = _present(whole[..., [_W, column]])
            part = _present(cells[..., [_W, column]])
            if here[..., 0].sum() > 0:
                rows.append(
                    {
                        "quadrant": name,
                        "quantity": quantity,
                        "n": int(total[_N]),
                        "steps": int((here[..., 0].sum(axis=1) > 0).sum()),
                        "share": part[..., 0].sum() / here[..., 0].sum(),
                        "entropy": total[_WH] / total[_W],
                        "falls": total[_WD] / total[_W],
                        "under_floor": found.under_floor(total),
                        **_means(padded, part, here),
                    }
                )
    return frame("quadrants", rows)


def _present(sums: Array) -> Array:
    # A form that is absent in a step must not count that step's weight either.
    return np.where(np.isnan(sums).any(axis=(1, 2), keepdims=True), 0.0, sums)


def _means(padded: Padded, part: Array, whole: Array) -> dict[str, float]:
    """Ratio sum(w x)/sum(w) inside the quadrant and over all tokens; (S, G, 2) sums each."""
    both = np.concatenate([part, whole[..., :1]], axis=-1)
    sums = padded.draws.totals(padded.draws.pool(both))  # (B, 3)
    here = both.sum(axis=(0, 1))
    steps = int((both[..., 2].sum(axis=1) > 0).sum())
    out = {}
    for name, below in (("mean", 0), ("contribution", 2)):
        out[name] = float(ratio(here[1], here[below]))
        replicates = ratio(sums[:, 1], sums[:, below])
        out[f"{name}_lo"], out[f"{name}_hi"] = padded.draws.interval(replicates, steps)
    return out


def regions(found: Scan) -> pd.DataFrame:
    """Mean dH and share of the sum of |dH| by the token's probability and by its entropy."""
    padded = Padded.of(found.train, found.first)
    if not padded.at:
        return frame("regions", [])
    whole = padded.cells(0).sum(axis=(0, 1))
    rows = []
    for axis, names, edges in (
        ("probability", probability_names(), PROBABILITY_EDGES),
        ("entropy", entropy_names(), ENTROPY_EDGES),
    ):
        for i, name in enumerate(names):
            cells = padded.cells(found.train.strata.index(name))[..., : len(BASE)]
            total = cells.sum(axis=(0, 1))
            if not total[_N]:
                continue
            sums = padded.draws.totals(padded.draws.pool(cells[..., [_W, _WY]]))
            steps = int((cells[..., _N].sum(axis=1) > 0).sum())
            low, high = padded.draws.interval(ratio(sums[:, 1], sums[:, 0]), steps)
            rows.append(
                {
                    "axis": axis,
                    "bin": name,
                    "lo": edges[i],
                    "hi": edges[i + 1],
                    "n": int(total[_N]),
                    "steps": steps,
                    "share": total[_W] / whole[_W],
                    "dH": total[_WY] / total[_W],
                    "dH_lo": low,
                    "dH_hi": high,
                    "abs_share": total[_WAY] / whole[_WAY] if whole[_WAY] > 0 else np.nan,
                    "under_floor": found.under_floor(total),
                }
            )
    return frame("regions", rows)


def density(found: Scan) -> pd.DataFrame:
    """Rows per bin of (prediction, dH), bins with rows only."""
    parts = []
    side = found.train
    for name, counts in side.density.items():
        at = np.flatnonzero(counts)
        centre = (2 * np.arange(BINS) + 1) / BINS - 1
        parts.append(
            pd.DataFrame(
                {
                    "predictor": name,
                    "x": centre[at // BINS] * side.ranges[name],
                    "y": centre[at % BINS] * side.limit,
                    "count": counts[at],
                }
            )
        )
    return frame("density", pd.concat(parts) if parts else [])


def density_panels(found: Scan, validation: pd.DataFrame, unit: str) -> pd.DataFrame:
    """One row per predictor with a density: its ranges, its slope and its correlations."""
    rows = []
    overall = {(r["scope"], r["predictor"]): r for r in records(validation, stratum="all")}
    side = found.train
    for name, counts in side.density.items():
        if not counts.any() or ("pooled", name) not in overall:
            continue
        within, pooled = overall["within_step", name], overall["pooled", name]
        rows.append(
            {
                "predictor": name,
                "x_range": side.ranges[name],
                "y_range": side.limit,
                "bins": BINS,
                "n": pooled["n"],
                "shown": int(counts.sum()),
                "steps": pooled["steps"],
                **{key: pooled[key] for key in ("slope", "slope_lo", "slope_hi")},
                "pcc": within["pcc"],
                "pcc_lo": within["pcc_lo"],
                "pcc_hi": within["pcc_hi"],
                "pcc_pooled": pooled["pcc"],
                "floor": found.floor,
                "unit": unit,
            }
        )
    return frame("density_panels", rows)
