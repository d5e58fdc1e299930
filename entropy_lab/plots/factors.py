"""Which of four factors a method's weight depends on: clip, advantage, probability, entropy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.analysis.audit_tables import FACTORS
from entropy_lab.plots import style
from entropy_lab.plots.sheet import Column, Sheet

NEEDS = ("audit",)
# The factors that stand in a method's formula, as its source writes it.
FORMULAS: dict[str, tuple[str, ...]] = {
    "grpo": ("clip",),
    "clip_higher": ("clip",),
    "clip_lower": ("clip",),
    "entropy_bonus": ("clip", "entropy"),
    "fork_tokens": ("clip", "entropy"),
    "w_reinforce": ("clip", "advantage"),
    "entropy_advantage": ("clip", "advantage", "entropy"),
    "clip_cov": ("clip", "advantage", "probability"),
    "kl_cov": ("advantage", "probability"),
    "steer": FACTORS,
    "opo": ("advantage",),
    "ce_gppo": ("clip", "advantage"),
    "cispo": ("clip",),
    "stare": ("clip", "advantage", "probability"),
    "entropy_pi": ("clip", "advantage", "probability"),
    "erc": ("clip", "entropy"),
    "pos_adv_reweight": ("clip", "advantage"),
    "repo_r": ("clip", "advantage", "probability"),
}
TITLES = {**{f: f.capitalize() for f in FACTORS}, "explained": "All four"}


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A row per method, a panel per factor: the variance that it explains alone."""
    data = _methods(tables["audit"])
    names = [str(m) for m in data["method"]]
    place = -np.arange(len(names), dtype=float)
    figure = style.new_figure(style.PAGE, 0.75 + 0.19 * max(3, len(names)))
    grid = figure.subplots(1, len(TITLES), sharey=True, sharex=True)
    for axes, (factor, title) in zip(grid, TITLES.items(), strict=True):
        _panel(axes, data, factor, place)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("share")
        axes.tick_params(axis="y", length=0)
        style.grid(axes, "x")
    grid[0].set_xlim(-0.05, 1.05)
    grid[0].set_yticks(place, [style.short_label(n) for n in names], fontsize=6.5)
    grid[0].set_ylim(place[-1] - 0.6, 0.6)
    return style.Drawing(figure, _caption(data))


def tabulate(tables: dict[str, pd.DataFrame]) -> Sheet:
    """The same numbers, the factors of the formula, and what hangs on single tokens."""
    data = _methods(tables["audit"])
    data = data.assign(formula=[_formula(str(m)) for m in data["method"]])
    shares = [Column(f"alone_{f}", f, "fixed", True) for f in FACTORS]
    columns = (
        Column("method", "method", "text"), Column("formula", "in its formula", "text"),
        *shares, Column("explained", "all four", "fixed", True),
        Column("touched", "tokens touched", "share", True), Column("pinned", "pinned", "share"),
        Column("omega_peak", "max / p99 of |Ω|", "short"),
    )  # fmt: skip
    return Sheet(data, columns, _caption(data))


def _methods(audit: pd.DataFrame) -> pd.DataFrame:
    """Methods of the first audited run; its recorded gradient is the one that made it."""
    data = audit[audit["run"] == audit["run"].iloc[0]]
    rows = data[data["kind"] != "run"]
    return rows if len(rows) else data


def _formula(method: str) -> str:
    known = FORMULAS.get(style.method_of(method))
    return ", ".join(known) if known else "–"


def _panel(axes: Axes, data: pd.DataFrame, factor: str, place: np.ndarray) -> None:
    column = "explained" if factor == "explained" else f"alone_{factor}"
    for y, (_, row) in zip(place, data.iterrows(), strict=True):
        name = str(row["method"])
        if factor in FORMULAS.get(style.method_of(name), ()):
            axes.axhspan(y - 0.42, y + 0.42, color=style.faint(), alpha=0.18, linewidth=0)
        if not np.isfinite(row[column]):
            axes.text(0.0, y, "does not vary" if factor == FACTORS[0] else "–", va="center",
                      fontsize=5.5, color=style.faint())  # fmt: skip
            continue
        hue = style.method_style(name)["color"]
        axes.hlines(y, row[f"{column}_lo"], row[f"{column}_hi"], color=hue, linewidth=1.4)
        axes.plot(row[column], y, "o", color=hue, markersize=3.8)


def _caption(data: pd.DataFrame) -> str:
    first = data.iloc[0]
    return (
        "Share of the variance of a token's weight (what a method makes of the plain policy "
        "gradient) that each factor explains alone, and all four together, by trees fitted on "
        f"every other step and judged on the rest: n = {int(first['n']):,} logged tokens of "
        f"{int(first['steps'])} steps of {first['run']}. Grey: the factor stands in the method's "
        "formula. A weight that does not vary has no shares. Lines: 95 % interval "
        f"({first['unit']}). No floor: nothing is measured anew."
    )
