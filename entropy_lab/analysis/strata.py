"""Correlation by kind of token: the table strata, and the signs that pooling reverses."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.bins import CUTS, entropy_names
from entropy_lab.analysis.bootstrap import draw, nan_median, unit
from entropy_lab.analysis.reduce import MIN_ROWS, pair_sums
from entropy_lab.analysis.scan import Scan
from entropy_lab.analysis.statistics import pearson, slope_through_origin
from entropy_lab.analysis.tables import QUADRANTS, frame, records
from entropy_lab.analysis.validate import Padded

Array = NDArray[np.float64]

STAGES = ("first third", "middle third", "last third")


def strata(found: Scan, grouped: bool) -> pd.DataFrame:
    """Rows of the table `strata`, training rows from `first` on, without the run's name.

    Quadrants and bins of the probability stand in `validation`. grouped: prompt groups are known.
    A stratum in which a form never varies has no row.
    """
    padded = Padded.of(found.train, found.first)
    if not padded.at:
        return frame("strata", [])
    rows = []
    for kind, name, cells, at in _parts(padded):
        groups = padded.groups[at]
        sums = pair_sums(cells[at])  # (S, G, predictors, 6)
        draws = draw(groups)
        for k, predictor in enumerate(found.predictors):
            pairs = sums[:, :, k]
            count = np.where(pairs[..., 0] > 0, cells[at][..., 0], 0.0).sum(axis=1)
            total = np.where((count >= MIN_ROWS)[:, None], pairs.sum(axis=1), 0.0)
            value = pearson(total)
            used = np.isfinite(value)
            if not used.any():
                continue
            steps = int(used.sum())
            pool = pearson(draws.pool(pairs))
            low, high = draws.interval(draws.medians(pool, value), steps)
            rows.append(
                {
                    "kind": kind,
                    "stratum": name,
                    "predictor": predictor,
                    "n": int(count[used].sum()),
                    "steps": steps,
                    "pcc": float(nan_median(value, 0)),
                    "pcc_lo": low,
                    "pcc_hi": high,
                    "slope": float(nan_median(slope_through_origin(total), 0)),
                    "under_floor": found.under_floor(cells[at].sum(axis=(0, 1))),
                    "unit": unit(len(groups), grouped),
                }
            )
    return frame("strata", rows)


def _parts(padded: Padded) -> list[tuple[str, str, Array, NDArray[np.int64]]]:
    """(kind, name, cells (S, G, columns), steps that count) of every stratum."""
    side = padded.side
    every = np.arange(len(padded.at))

    def cells(*names: str) -> Array:
        return np.sum([padded.cells(side.strata.index(n)) for n in names], axis=0)

    out = [("entropy", n, cells(n), every) for n in entropy_names()]
    positive = [q for q in QUADRANTS if q.startswith("pos_")]
    negative = [q for q in QUADRANTS if q.startswith("neg_")]
    out += [("advantage", "A > 0", cells(*positive), every)]
    out += [("advantage", "A < 0", cells(*negative), every)]
    for kind, names in CUTS.items():
        out += [(kind, n, padded.cuts(kind, i), every) for i, n in enumerate(names)]
    for name, third in zip(STAGES, np.array_split(every, len(STAGES)), strict=True):
        if len(third):
            out.append(("stage", name, cells("all"), third))
    return out


def reversals(validation: pd.DataFrame) -> list[str]:
    """One sentence per form whose correlation over all rows has the other sign inside a step.

    Only where both 95 % intervals leave zero out; likewise for prompt groups.
    """
    out = []
    rows = {(r["predictor"], r["scope"]): r for r in records(validation, stratum="all")}
    for predictor in dict.fromkeys(name for name, _ in rows):
        pooled = rows[predictor, "pooled"]
        for scope, where in (("within_step", "a step"), ("within_group", "a prompt group")):
            inside = rows[predictor, scope]
            if clear_sign(pooled) * clear_sign(inside) < 0:
                out.append(
                    f"{predictor} reverses its sign: PCC {pooled['pcc']:.2f} over all rows, "
                    f"{inside['pcc']:.2f} inside {where}, so differences between "
                    f"{'steps' if scope == 'within_step' else 'groups'} make the pooled number"
                )
    return out


def clear_sign(row: dict) -> int:
    """1 or -1 where the interval of the row's PCC leaves 0 out, else 0."""
    return int(row["pcc_lo"] > 0) - int(row["pcc_hi"] < 0)
