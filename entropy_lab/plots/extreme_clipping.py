"""What happens without a working clip (0.99 below, 5 above)."""

from __future__ import annotations

import pandas as pd

from entropy_lab.plots import style, sweeps
from entropy_lab.plots.sheet import Sheet

NEEDS, ALSO = sweeps.NEEDS, sweeps.ALSO
SWEEP = sweeps.Sweep(
    name="extreme_clipping",
    keys=("clip_low", "clip_high"),
    what="With and without a working clip",
    made="python -m experiments.run 06_extreme_clipping, then --from its results",
    among=("clip_low=0.99", "clip_high=5"),
)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Entropy and reward of every arm, and where they end."""
    return sweeps.draw_sweep(SWEEP, tables)


def tabulate(tables: dict[str, pd.DataFrame]) -> Sheet:
    """Where every arm ends."""
    return sweeps.tabulate_sweep(SWEEP, tables)
