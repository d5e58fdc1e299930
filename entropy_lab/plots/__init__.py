"""Figures and tables, one file each: they read analysis tables and compute nothing.

PLOTS is the registry: a name, the items of the method's paper (arXiv 2510.10150) that it redraws,
what it reads, how it is drawn and, for some, how it is printed as a table.
"""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.plots import (
    accuracy_entropy,
    benchmarks,
    calibration,
    change_distribution,
    clip_sweep,
    drift,
    entropy_reward,
    entropy_target,
    error_budget,
    estimators,
    extreme_clipping,
    factors,
    influence_scores,
    lambda_min,
    layer_shares,
    mapping,
    method_changes,
    methods_curves,
    methods_summary,
    pass_at_k,
    plane,
    predicted_vs_actual,
    quadrants,
    regions,
    replay,
    scope_effect,
    scope_runs,
    train_heldout,
    weight_collapse,
    words,
)
from entropy_lab.plots.lacking import Lacking, no_rows
from entropy_lab.plots.reading import gathered
from entropy_lab.plots.sheet import FORMATS, Sheet
from entropy_lab.plots.style import Drawing, Theme, add_caption, theme

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Plot:
    """needs: the analysis tables that `draw` reads; also: those it reads where they exist.

    items: of the paper; none where the figure is our own. tabulate: the same numbers as a table.
    deep: their rows come from deep steps alone.
    """

    needs: tuple[str, ...]
    draw: Callable[[Tables], Drawing]
    items: tuple[str, ...] = ()
    deep: bool = False
    tabulate: Callable[[Tables], Sheet] | None = None
    also: tuple[str, ...] = ()
    title: str = ""


def _of(module: ModuleType, *items: str, deep: bool = False) -> Plot:
    title = (module.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    table, also = getattr(module, "tabulate", None), getattr(module, "ALSO", ())
    return Plot(module.NEEDS, module.draw, items, deep, table, also, title)


PLOTS: dict[str, Plot] = {
    "estimators": _of(estimators, "T1", "T8"),
    "factors": _of(factors, "T2"),
    "benchmarks": _of(benchmarks, "T3", "T4", "T5", "T9", "T12", "F20"),
    "extreme_clipping": _of(extreme_clipping, "T6", "F8"),
    "clip_sweep": _of(clip_sweep, "T10"),
    "mapping": _of(mapping, "T11"),
    "lambda_min": _of(lambda_min, "F18", "F19"),
    "change_distribution": _of(change_distribution, "F1"),
    "regions": _of(regions, "F2"),
    "quadrants": _of(quadrants, "F3"),
    "plane": _of(plane, "F4"),
    "method_changes": _of(method_changes, "F5"),
    "pass_at_k": _of(pass_at_k, "F6"),
    "accuracy_entropy": _of(accuracy_entropy, "F7", "F15"),
    "predicted_vs_actual": _of(predicted_vs_actual),
    "calibration": _of(calibration),
    "entropy_reward": _of(entropy_reward),
    "error_budget": _of(error_budget, deep=True),
    "influence_scores": _of(influence_scores, deep=True),
    "layer_shares": _of(layer_shares, deep=True),
    "words": _of(words),
    "train_heldout": _of(train_heldout),
    "entropy_target": _of(entropy_target),
    "weight_collapse": _of(weight_collapse),
    "scope_effect": _of(scope_effect),
    "scope_runs": _of(scope_runs),
    "replay": _of(replay),
    "drift": _of(drift),
    "methods_curves": _of(methods_curves),
    "methods_summary": _of(methods_summary),
}


def make(name: str, tables: Tables) -> Drawing:
    """The figure `name` from tables already read, in the current theme.

    Raises ConfigError for an unknown name and Lacking, a RunError that names the command, where
    the tables have nothing for it.
    """
    plot = named(name)
    _check(name, plot, tables)
    return plot.draw(_with_optional(plot, tables))


def sheet(name: str, tables: Tables) -> Sheet | None:
    """The table `name`; None for a figure that has none. Errors as make()."""
    plot = named(name)
    _check(name, plot, tables)
    return plot.tabulate(_with_optional(plot, tables)) if plot.tabulate else None


def attempt(name: str, tables: Tables) -> Drawing | str:
    """The figure, or the sentence that says what to record for it; never an exception for that."""
    try:
        return make(name, tables)
    except Lacking as lacking:
        return str(lacking)


def _check(name: str, plot: Plot, tables: Tables) -> None:
    for table in plot.needs:
        if table not in tables or tables[table].empty:
            raise no_rows(name, table)


def _with_optional(plot: Plot, tables: Tables) -> Tables:
    return {**dict.fromkeys(plot.also, pd.DataFrame()), **tables}


def draw(
    name: str,
    folders: Sequence[Path | str] | Path | str,
    out: Path | str,
    formats: Sequence[str] = ("pdf", "png"),
    look: Theme = "light",
) -> list[Path]:
    """Draw figure `name` from the analysis tables in `folders` (or runs) to OUT/<name>.<format>.

    What has a table as well is written to OUT/<name>.{tex,md,csv} too. Raises ConfigError for an
    unknown name, Lacking where the tables have nothing for it, RunError where they are missing or
    OUT cannot be written.
    """
    plot = named(name)
    where = [folders] if isinstance(folders, (str, Path)) else list(folders)
    failed: Lacking | None = None
    for tables in gathered(plot.needs, plot.also, [Path(f) for f in where]):
        try:
            with theme(look):
                paths = write(name, make(name, tables), Path(out), formats)
        except Lacking as lacking:
            failed = failed or lacking
            continue
        table = sheet(name, tables)
        return paths + (write_sheet(name, table, Path(out)) if table else [])
    assert failed is not None
    raise failed


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


def write_sheet(name: str, table: Sheet, out: Path) -> list[Path]:
    """Write OUT/<name>.{tex,md,csv}, whole files; RunError where OUT cannot be written."""
    texts = dict(zip(FORMATS, (table.latex(), table.markdown(), table.csv()), strict=True))
    paths = [out / f"{name}.{ending}" for ending in texts]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(temporary, path)
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


def names_of(name: str) -> list[str]:
    """The figures that a name, an item of the paper (T2, F15) or "all" means; ConfigError else."""
    if name == "all":
        return list(PLOTS)
    if name in PLOTS:
        return [name]
    found = [n for n, plot in PLOTS.items() if name.upper() in plot.items]
    if not found:
        near = difflib.get_close_matches(name, PLOTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        items = ", ".join(item for plot in PLOTS.values() for item in plot.items)
        raise ConfigError(
            f"unknown figure {name!r}: {hint}Valid: {', '.join(PLOTS)}, all; items of the paper: "
            f"{items}"
        )
    return found


def named(name: str) -> Plot:
    """The registry's entry of a name; ConfigError for an unknown one."""
    return PLOTS[name] if name in PLOTS else PLOTS[names_of(name)[0]]
