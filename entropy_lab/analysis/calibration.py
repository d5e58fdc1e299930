"""Mean measured dH where a form predicts about as much: the table calibration."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.analysis.bootstrap import unit
from entropy_lab.analysis.scan import Scan
from entropy_lab.analysis.statistics import ratio, stacked
from entropy_lab.analysis.tables import frame
from entropy_lab.analysis.validate import Padded


def calibration(found: Scan, grouped: bool) -> pd.DataFrame:
    """Rows of the table `calibration`, training rows from `first` on, without the run's name.

    grouped: prompt groups are known. A form that is absent everywhere has no row.
    """
    padded = Padded.of(found.train, found.first)
    if not padded.at:
        return frame("calibration", [])
    rows = []
    for name, parts in found.train.calibration.items():
        sums, _ = stacked(parts)  # (S, G, bins, 4)
        edges = [-np.inf, *found.train.edges[name], np.inf]
        replicates = padded.draws.totals(padded.draws.pool(sums))  # (B, bins, 4)
        used = [i for i, n in enumerate(sums[..., 0].sum(axis=(0, 1))) if n]
        for place, i in enumerate(used, start=1):
            n, w, wx, wy = sums[:, :, i].sum(axis=(0, 1))
            steps = int((sums[:, :, i, 0].sum(axis=1) > 0).sum())
            means = ratio(replicates[:, i, 3], replicates[:, i, 1])
            low, high = padded.draws.interval(means, steps)
            rows.append(
                {
                    "predictor": name,
                    "bin": place,
                    "lo": edges[i],
                    "hi": edges[i + 1],
                    "n": int(n),
                    "steps": steps,
                    "predicted": wx / w,
                    "dH": wy / w,
                    "dH_lo": low,
                    "dH_hi": high,
                    "unit": unit(len(padded.at), grouped),
                }
            )
    return frame("calibration", rows)
