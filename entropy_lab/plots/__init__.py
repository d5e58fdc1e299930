"""Figures, one file each: they read analysis tables and compute nothing; PLOTS is the registry."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from entropy_lab.analysis.store import read_tables
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.plots import (
    calibration,
    drift,
    entropy_reward,
    error_budget,
    influence_scores,
    methods_curves,
    methods_summary,
    predicted_vs_actual,
    quadrants,
    regions,
    replay,
)
from entropy_lab.plots.style import Drawing, Theme, add_caption, theme

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Plot:
    """needs: the analysis tables that `draw` reads; deep: their rows come from deep steps alone."""

    needs: tuple[str, ...]
    draw: Callable[[Tables], Drawing]
    deep: bool = False


PLOTS: dict[str, Plot] = {
    "predicted_vs_actual": Plot(predicted_vs_actual.NEEDS, predicted_vs_actual.draw),
    "calibration": Plot(calibration.NEEDS, calibration.draw),
    "entropy_reward": Plot(entropy_reward.NEEDS, entropy_reward.draw),
    "error_budget": Plot(error_budget.NEEDS, error_budget.draw, deep=True),
    "influence_scores": Plot(influence_scores.NEEDS, influence_scores.draw, deep=True),
    "quadrants": Plot(quadrants.NEEDS, quadrants.draw),
    "regions": Plot(regions.NEEDS, regions.draw),
    "replay": Plot(replay.NEEDS, replay.draw),
    "drift": Plot(drift.NEEDS, drift.draw),
    "methods_curves": Plot(methods_curves.NEEDS, methods_curves.draw),
    "methods_summary": Plot(methods_summary.NEEDS, methods_summary.draw),
}


def make(name: str, tables: Tables) -> Drawing:
    """The figure `name` from tables already read, in the current theme.

    Raises ConfigError for an unknown name and RunError where a needed table has no rows.
    """
    plot = _plot(name)
    for table in plot.needs:
        if tables[table].empty:
            what = "deep step" if plot.deep else "token rows"
            key = "probe.deep_every = 10" if plot.deep else "probe.enabled = true"
            raise RunError(
                f"{name} needs rows in {table}.parquet and it has none: the run recorded no "
                f"{what} ({key} records them), or none of its dH differs from 0"
            )
    return plot.draw(tables)


def draw(
    name: str,
    folders: Sequence[Path | str] | Path | str,
    out: Path | str,
    formats: Sequence[str] = ("pdf", "png"),
    look: Theme = "light",
) -> list[Path]:
    """Draw figure `name` from the analysis tables in `folders` (or runs) to OUT/<name>.<format>.

    Raises ConfigError for an unknown name, RunError where tables are missing or empty or OUT
    cannot be written.
    """
    plot = _plot(name)
    where = [folders] if isinstance(folders, (str, Path)) else list(folders)
    tables = read_tables([Path(f) for f in where], plot.needs)
    with theme(look):
        return write(name, make(name, tables), Path(out), formats)


def write(name: str, drawing: Drawing, out: Path, formats: Sequence[str]) -> list[Path]:
    """Write OUT/<name>.<format> with the caption below; RunError where OUT cannot be written."""
    box = add_caption(drawing)
    paths = [out / f"{name}.{ending}" for ending in formats]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            metadata = _NO_DATE.get(path.suffix)
            drawing.figure.savefig(path, dpi=200, metadata=metadata, bbox_inches=box)
            drawing.figure.set_layout_engine("none")  # laid out by now; again costs as much
    except OSError as error:
        raise RunError(f"cannot write {name} to {out}: {error.strerror or error}") from error
    return paths


def svg(drawing: Drawing) -> str:
    """The figure without its caption as SVG text; letters are outlines, so no font is needed."""
    text = io.StringIO()
    drawing.figure.savefig(text, format="svg", metadata=_NO_DATE[".svg"])
    drawing.figure.set_layout_engine("none")
    return text.getvalue()


# Without time stamps equal tables give equal files.
_NO_DATE = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def _plot(name: str) -> Plot:
    if name not in PLOTS:
        near = difflib.get_close_matches(name, PLOTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown figure {name!r}: {hint}Valid: {', '.join(PLOTS)}, all")
    return PLOTS[name]
