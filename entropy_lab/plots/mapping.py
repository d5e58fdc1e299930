"""How STEER's mapping from Omega to a weight changes entropy and results."""

from __future__ import annotations

import pandas as pd

from entropy_lab.plots import style, sweeps
from entropy_lab.plots.sheet import Sheet

NEEDS, ALSO = sweeps.NEEDS, sweeps.ALSO
SWEEP = sweeps.Sweep(
    name="mapping",
    keys=("mapping",),
    what="STEER with other mappings from |Ω| to a weight",
    made="entropy-lab train --set method.name=steer --set method.mapping=linear (and exp)",
)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Entropy and reward of every arm, and where they end."""
    return sweeps.draw_sweep(SWEEP, tables)


def tabulate(tables: dict[str, pd.DataFrame]) -> Sheet:
    """Where every arm ends."""
    return sweeps.tabulate_sweep(SWEEP, tables)
