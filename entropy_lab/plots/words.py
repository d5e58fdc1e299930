"""Which tokens raise and which lower entropy, and how that changes over training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from entropy_lab.analysis.strata import STAGES
from entropy_lab.analysis.words import REST
from entropy_lab.plots import style
from entropy_lab.plots.sheet import Column, Sheet

NEEDS = ("words", "words_change")
MOST = 10  # tokens shown on either side


@dataclass(frozen=True)
class Section:
    """A part of a report: sentences, a table of numbers and a picture, for the run `run`."""

    run: str
    title: str
    sentences: list[str]
    sheet: Sheet
    drawing: style.Drawing


def draw(tables: dict[str, pd.DataFrame]) -> style.Drawing:
    """A row per run: contribution of each token, its mean dH, and the thirds of training."""
    data, change = tables["words"], tables["words_change"]
    runs = style.shown_runs(data)[:2]
    shown = {run: _chosen(data[data["run"] == run]) for run in runs}
    heights = [0.62 + 0.155 * len(part) for part in shown.values()]
    figure = style.new_figure(style.PAGE, 0.1 + sum(heights))
    grid = figure.subplots(len(runs), 3, squeeze=False, height_ratios=heights)
    for row, (run, part) in enumerate(shown.items()):
        place = -np.arange(len(part), dtype=float)
        _bars(grid[row, 0], part, place)
        _means(grid[row, 1], part, place)
        _thirds(grid[row, 2], part, change[change["run"] == run], place)
        several = f"{run} · " if len(runs) > 1 else ""
        grid[row, 0].set_title(f"{several}Adds to the mean dH", fontsize=8)
        grid[row, 1].set_title("Mean dH of the token", fontsize=8)
        grid[row, 2].set_title("Adds, by third of training", fontsize=8)
        labels = [_label(w) for w in part.to_dict("records")]
        grid[row, 0].set_yticks(place, labels, fontsize=6.2)
        for axes in grid[row]:
            axes.set_ylim(-len(part) + 0.4, 0.6)
            axes.tick_params(axis="y", length=0)
            style.grid(axes, "x")
        for axes in grid[row, 1:]:
            axes.set_yticks(place, [""] * len(part))
    return style.Drawing(figure, _caption(data, shown))


def tabulate(tables: dict[str, pd.DataFrame]) -> Sheet:
    """Every token with a row of its own, by its share of the sum of |dH|."""
    data = tables["words"]
    several = data["run"].nunique() > 1
    data = data.assign(shown=[_text(w).replace(r"\$", "$") for w in data.to_dict("records")])
    columns = (
        *((Column("run", "run", "text"),) if several else ()),
        Column("shown", "token", "text"), Column("token_id", "id", "text"),
        Column("n", "rows", "count"), Column("probability", "probability"),
        Column("dH", "mean dH", "short", True),
        Column("contribution", "adds to the mean dH", "short", True),
        Column("influence", "mean influence", "short", True),
        Column("abs_share", "share of Σ|dH|", "share", True),
    )  # fmt: skip
    own = len(data[data["token_id"] != REST])
    return Sheet(data, columns, _sheet_caption(data, own))


def section(tables: dict[str, pd.DataFrame], run: str) -> Section | None:
    """What the report says of a run's tokens; None without token rows. Draw it in a theme."""
    own = {name: tables[name][tables[name]["run"] == run] for name in NEEDS}
    if not len(own["words"]):
        return None
    return Section(run, "Which words did it", _sentences(own["words"]), tabulate(own), draw(own))


def _sentences(words: pd.DataFrame) -> list[str]:
    words = words[words["token_id"] != REST]
    out = []
    for verb, rows in (
        ("lower", words[words["contribution_hi"] < 0].nsmallest(3, "contribution")),
        ("raise", words[words["contribution_lo"] > 0].nlargest(3, "contribution")),
    ):
        if not len(rows):
            out.append(f"No single token can be said to {verb} entropy (95 % intervals hold 0).")
            continue
        shown = "; ".join(
            f"{_text(w)} ({w['contribution']:.2g} [{w['contribution_lo']:.2g}, "
            f"{w['contribution_hi']:.2g}] nats a token, {w['abs_share']:.0%} of the sum of |dH|)"
            for w in rows.to_dict("records")
        )
        out.append(f"Tokens that {verb} entropy most: {shown}.".replace(r"\$", "$"))
    return [text.replace("-", "−") for text in out]


def _chosen(words: pd.DataFrame) -> pd.DataFrame:
    """The MOST tokens that raise entropy most, then the MOST that lower it most, by size."""
    words = words[words["token_id"] != REST].sort_values("contribution", ascending=False)
    if len(words) <= 2 * MOST:
        return words
    return pd.concat([words.head(MOST), words.tail(MOST)])


def _text(word: dict) -> str:
    token = int(word["token_id"])
    return "all others" if token == REST else style.token_text(str(word["text"] or ""), token)


def _label(word: dict) -> str:
    return f"{_text(word)}  ({word['n']:,})"


def _bars(axes: Axes, words: pd.DataFrame, place: np.ndarray) -> None:
    ends = words[["contribution", "contribution_lo", "contribution_hi"]].abs().max().max()
    scale, unit = style.power_of_ten(float(ends))
    value = words["contribution"].to_numpy() / scale
    colours = [style.colour(style.LOWERS if v < 0 else style.RAISES) for v in value]
    axes.barh(place, value, height=0.7, color=colours)
    low, high = (words[f"contribution_{e}"] / scale for e in ("lo", "hi"))
    axes.hlines(place, low, high, color=style.ink(), linewidth=0.9)
    axes.axvline(0, color=style.faint(), linewidth=0.8)
    axes.set_xlabel(unit)


def _means(axes: Axes, words: pd.DataFrame, place: np.ndarray) -> None:
    ends = words[["dH", "dH_lo", "dH_hi"]].abs().max().max()
    scale, unit = style.power_of_ten(float(ends))
    for y, row in zip(place, words.to_dict("records"), strict=True):
        hue = style.colour(style.LOWERS if row["dH"] < 0 else style.RAISES)
        axes.hlines(y, row["dH_lo"] / scale, row["dH_hi"] / scale, color=hue, linewidth=1.3)
        axes.plot(row["dH"] / scale, y, "o", color=hue, markersize=3)
    axes.axvline(0, color=style.faint(), linewidth=0.8)
    axes.set_xlabel(unit)


def _thirds(axes: Axes, words: pd.DataFrame, change: pd.DataFrame, place: np.ndarray) -> None:
    here = change[change["token_id"].isin(words["token_id"])]
    ends = here[["contribution", "contribution_lo", "contribution_hi"]].abs().max().max()
    scale, unit = style.power_of_ten(float(ends))
    for i, stage in enumerate(STAGES):
        rows = here[here["stage"] == stage].set_index("token_id").reindex(words["token_id"])
        shade = style.colour((style.PALETTE[5], style.PALETTE[0], style.PALETTE[1])[i])
        at = place + 0.24 - 0.24 * i
        low, high = (rows[f"contribution_{e}"].to_numpy() / scale for e in ("lo", "hi"))
        axes.hlines(at, low, high, color=shade, linewidth=0.9)
        axes.plot(rows["contribution"].to_numpy() / scale, at, "o^s"[i], color=shade,
                  markersize=2.6, label=stage.split()[0])  # fmt: skip
    axes.axvline(0, color=style.faint(), linewidth=0.8)
    axes.set_xlabel(unit)
    axes.legend(loc="best", fontsize=5.8, handletextpad=0.1, borderpad=0.2)


def _caption(data: pd.DataFrame, shown: dict[str, pd.DataFrame]) -> str:
    rows = data.groupby("run")["n"].sum().max()
    few = any(len(part) == 2 * MOST for part in shown.values())
    which = f"The {MOST} tokens that raise entropy most and the {MOST} that lower it most" * few
    runs = data["run"].nunique()
    return (
        f"{which or 'Every token'}, with its rows: n = {rows:,} token rows of "
        f"{data['steps'].max()} steps. Left: share of the tokens × mean dH, which adds up to the "
        "mean dH over all tokens; blue lowers entropy, orange raises it. ␣: blank, ⏎: end of line, "
        f"#: id of a token without a known text. Lines: 95 % interval ({data['unit'].iloc[0]}). "
        "Floor: that of a dH, see change_distribution."
        + (f" The first {len(shown)} of {runs} runs." if runs > len(shown) else "")
    )


def _sheet_caption(data: pd.DataFrame, own: int) -> str:
    deep = "" if data["influence"].notna().any() else " Influence needs deep steps."
    return (
        f"Tokens by their share of the sum of |dH|: n = {data.groupby('run')['n'].sum().max():,} "
        f"token rows of {data['steps'].max()} steps, {own} tokens with a row of their own; dH and "
        "influence in nats. “adds to the mean dH”: share of the tokens × mean. Brackets: 95 % "
        f"interval ({data['unit'].iloc[0]}).{deep}"
    )
