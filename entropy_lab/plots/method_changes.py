"""Which tokens each method changes, by sign region, probability and entropy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.analysis.bins import entropy_names, probability_names
from entropy_lab.analysis.tables import QUADRANTS
from entropy_lab.plots import style
from entropy_lab.plots.lacking import without
from entropy_lab.plots.regions import range_text

NEEDS = ("audit_touched", "audit")
AXES = {
    "quadrant": ("Sign region", QUADRANTS),
    "probability": ("Probability of the token", probability_names()),
    "entropy": ("Entropy, nats", entropy_names()),
}
_SHORT = {"pos_likely": "A > 0\nlikely", "pos_unlikely": "A > 0\nunlikely",
          "neg_likely": "A < 0\nlikely", "neg_unlikely": "A < 0\nunlikely",
          "zero": "A = 0"}  # fmt: skip


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A row per method: the share of each region's tokens whose push the method changes."""
    data, audit = tables["audit_touched"], tables["audit"]
    run = str(audit["run"].iloc[0])
    audit = audit[(audit["run"] == run) & (audit["method"] != audit["reference"])]
    names = [str(m) for m in audit["method"][audit["kind"] != "run"]]
    if not names:
        raise without("method_changes", "the audit has no method beside its reference",
                      "entropy-lab audit RUN --method steer --method clip_cov")  # fmt: skip
    data = data[data["run"] == run]
    figure = style.new_figure(style.PAGE, 0.95 + 0.2 * len(names))
    widths = [len(bins) for _, bins in AXES.values()]
    grid = figure.subplots(1, len(AXES), sharey=True, width_ratios=widths)
    images = []
    for axes, (axis, (title, bins)) in zip(grid, AXES.items(), strict=True):
        part = data[data["axis"] == axis]
        images.append(_map(axes, part, names, list(bins), title))
        labels = [_SHORT.get(b) or range_text(b) for b in bins]
        turned = 0 if bins[0] in _SHORT else 90
        axes.set_xticks(range(len(bins)), labels, fontsize=5.5, rotation=turned)
    grid[0].set_yticks(range(len(names)), [style.short_label(n) for n in names], fontsize=6.5)
    bar = figure.colorbar(images[0], ax=grid, fraction=0.02, pad=0.01)
    bar.set_label("share touched")
    bar.outline.set_visible(False)
    return style.Drawing(figure, _caption(audit, run, tables["audit"]["run"].nunique()))


def _map(axes: Axes, data: pd.DataFrame, names: list[str], bins: list[str], title: str):
    table = data.pivot_table(index="method", columns="bin", values="touched", aggfunc="first")
    shares = table.reindex(index=names, columns=bins).to_numpy(np.float64)
    image = axes.imshow(shares, aspect="auto", cmap=style.density_colours(), vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        if np.isfinite(share):
            axes.text(j, i, _percent(share), ha="center", va="center", fontsize=5.2,
                      color=style.ink() if share < 0.45 else style.paper())  # fmt: skip
    axes.set_title(title, fontsize=7.5)
    axes.tick_params(length=0)
    return image


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    return "<0.1" if share < 0.001 else f"{100 * share:.{0 if share >= 0.1 else 1}f}"


def _caption(audit: pd.DataFrame, run: str, runs: int) -> str:
    first = audit.iloc[0]
    return (
        f"Share (per cent) of each region's tokens whose push (−dL/dlogp) a method makes differ "
        f"from {first['reference']}'s by more than 1 % of the larger of the two: n = "
        f"{int(first['n']):,} logged tokens of {int(first['steps'])} steps of {run}"
        f"{f' (the first of {runs} audited runs)' if runs > 1 else ''}. Likely: log π > −H. "
        f"Intervals ({first['unit']}) stand in audit_touched.parquet. No floor: nothing is "
        "measured anew."
    )
