"""How far a method's push moves when its statistics see a part of the step only."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.plots import style
from entropy_lab.plots.lacking import without

NEEDS = ("audit_scope", "audit")
SPLITS = {"micro-batch": "Micro-batches", "rank": "Ranks, each for itself"}
_NAMES = {("micro-batch", 1): "the run's own", ("micro-batch", 2): "half", ("micro-batch", 4):
          "a quarter", ("rank", 2): "2 ranks", ("rank", 4): "4 ranks"}  # fmt: skip
_MARKS = "os^Dv"


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A row per method, a panel per way to cut the step: distance of the push from the whole's."""
    data, audit = tables["audit_scope"], tables["audit"]
    run = str(audit["run"].iloc[0])
    data = data[data["run"] == run]
    # Methods without a statistic over the batch cannot move; the others are shown.
    moves = data.groupby("method", sort=False)["distance"].max()
    names = [str(m) for m, d in moves.items() if d > 0]
    still = [str(m) for m, d in moves.items() if not d > 0]
    if not names:
        raise without("scope_effect", "no audited method takes a statistic over the batch",
                      "entropy-lab audit RUN --method steer --method clip_cov")  # fmt: skip
    figure = style.new_figure(style.PAGE, 1.15 + 0.24 * max(2, len(names)))
    grid = figure.subplots(1, len(SPLITS), sharey=True, sharex=True)
    place = -np.arange(len(names), dtype=float)
    for axes, (split, title) in zip(grid, SPLITS.items(), strict=True):
        part = data[data["split"] == split]
        divisors = sorted(part["divisor"].unique())
        shifts = np.linspace(0.22, -0.22, len(divisors)) if len(divisors) > 1 else [0.0]
        for i, (divisor, shift) in enumerate(zip(divisors, shifts, strict=True)):
            rows = part[part["divisor"] == divisor].set_index("method").reindex(names)
            hue = style.colour(style.PALETTE[i])
            axes.hlines(place + shift, rows["distance_lo"], rows["distance_hi"], color=hue,
                        linewidth=1.3)  # fmt: skip
            size = rows["responses"].mean()
            label = f"{_NAMES.get((split, int(divisor)), divisor)} ({size:.3g} responses)"
            axes.plot(rows["distance"], place + shift, _MARKS[i], color=hue, markersize=4,
                      label=label)  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel("|c′ − c| / |c|")
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32 if len(names) > 3 else -0.5),
                    ncols=2, fontsize=6.5)  # fmt: skip
        style.grid(axes, "x")
    grid[0].set_xlim(left=-0.02 * max(float(data["distance"].max()), 1e-9))
    grid[0].set_yticks(place, [style.short_label(n) for n in names], fontsize=6.5)
    grid[0].set_ylim(place[-1] - 0.6, 0.6)
    return style.Drawing(figure, _caption(audit, data, still))


def _caption(audit: pd.DataFrame, data: pd.DataFrame, still: list[str]) -> str:
    first = audit.iloc[0]
    none = f" Without such a statistic, so 0: {', '.join(still)}." if still else ""
    return (
        "How far a method's push c (−dL/dlogp) moves when its means, quantiles and maxima see one "
        f"part of the step alone: n = {int(first['n']):,} logged tokens of "
        f"{int(data['steps'].max())} steps of {first['run']}; 0: the same push as over the whole "
        f"minibatch.{none} Lines: 95 % interval ({data['unit'].iloc[0]}). No floor: nothing is "
        "measured anew."
    )
