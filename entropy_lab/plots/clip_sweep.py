"""How the clip bounds change entropy and results."""

from __future__ import annotations

import pandas as pd

from entropy_lab.plots import style, sweeps
from entropy_lab.plots.sheet import Sheet

NEEDS, ALSO = sweeps.NEEDS, sweeps.ALSO
SWEEP = sweeps.Sweep(
    name="clip_sweep",
    keys=("clip_low", "clip_high"),
    what="Clip bounds",
    made="python -m experiments.run 04_random_reward, then --from its results",
)


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """Entropy and reward of every arm, and where they end."""
    return sweeps.draw_sweep(SWEEP, tables)


def tabulate(tables: dict[str, pd.DataFrame]) -> Sheet:
    """Where every arm ends."""
    return sweeps.tabulate_sweep(SWEEP, tables)
