"""How STEER's smallest weight changes entropy and results."""

from __future__ import annotations

import pandas as pd

from entropy_lab.plots import style, sweeps
from entropy_lab.plots.sheet import Sheet

NEEDS, ALSO = sweeps.NEEDS, sweeps.ALSO
SWEEP = sweeps.Sweep(
    name="lambda_min",
    keys=("lambda_min",),
    what="STEER with other smallest weights",
    made="python -m experiments.run 05_lambda_min, then --from its results",
)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Entropy and reward of every arm, and where they end."""
    return sweeps.draw_sweep(SWEEP, tables)


def tabulate(tables: dict[str, pd.DataFrame]) -> Sheet:
    """Where every arm ends."""
    return sweeps.tabulate_sweep(SWEEP, tables)
