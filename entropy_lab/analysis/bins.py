"""How token rows are cut into kinds: edges and names of the bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PROBABILITY_EDGES = (0.0, 0.1, 0.3, 0.7, 0.9, 0.99, 1.0)
ENTROPY_EDGES = (0.0, 0.01, 0.1, 0.3, 0.7, 1.5, float("inf"))
POSITION_EDGES = (0, 1, 4, 16, 64, 256)  # each bin starts here, the last is open
POSITIONS = ("0", "1-3", "4-15", "16-63", "64-255", "256-")
# How many rows of the step are in the row's state.
STATE_EDGES = (1, 2, 8, 64)
STATES = ("1", "2-7", "8-63", "64-")
CUTS = {"position": POSITIONS, "states": STATES}
# Edges of the calibration bins. dH has heavy tails and the largest predictions matter most, so the
# outer bins are narrow.
QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def probability_names() -> tuple[str, ...]:
    """Names of the bins of pi(token), in order; the last one is closed."""
    return _bin_names("p", PROBABILITY_EDGES)


def entropy_names() -> tuple[str, ...]:
    """Names of the bins of H, nats, in order."""
    return _bin_names("H", ENTROPY_EDGES)


def _bin_names(letter: str, edges: Sequence[float]) -> tuple[str, ...]:
    pairs = list(zip(edges[:-1], edges[1:], strict=True))
    last = "]" if np.isfinite(edges[-1]) else ")"
    return tuple(
        f"{letter}[{low:g},{high:g}{last if i == len(pairs) - 1 else ')'}"
        for i, (low, high) in enumerate(pairs)
    )
