"""The report of an analysis: one HTML file that needs nothing else, verdict first."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from entropy_lab.analysis.doctor import Diagnosis, doctor
from entropy_lab.analysis.tables import records
from entropy_lab.analysis.tables_runs import OF_SEVERAL
from entropy_lab.errors import RunError
from entropy_lab.plots import PLOTS
from entropy_lab.record import open_run
from entropy_lab.report import head, html, methods, single, viewer
from entropy_lab.report.deep import budget, influence
from entropy_lab.report.figures import Figures
from entropy_lab.report.kinds import signs, strata
from entropy_lab.report.methods import MANY_RUNS
from entropy_lab.report.outline import OVER_METHODS, Section, heading, sections
from entropy_lab.report.style import css

Tables = Mapping[str, pd.DataFrame]
TableOf = Callable[[Tables, str, bool], str]

# Tables of a run below the figures of a section.
OF_A_RUN: dict[str, tuple[TableOf, ...]] = {
    "method": (single.method,),
    "trust": (single.validation,),
    "errors": (budget,),
    "push": (influence,),
    "tokens": (signs, strata),
}


def write_report(tables: Tables, out: Path, command: str, *, read_runs: bool = False) -> Path:
    """Draw OUT/figures/*.{pdf,png} and write OUT/report.html; `command` made the tables.

    read_runs: open the run directories that `summary` names, for the token viewer (of a single
    run), the checks of `doctor` and the settings. Raises RunError where OUT cannot be written.
    """
    names = list(tables["summary"]["run"])
    paths = [Path(p) for p in tables["summary"]["path"]]
    read = dict(zip(names, paths, strict=True)) if read_runs and len(names) <= MANY_RUNS else {}
    figures = Figures(tables, out)
    parts = [head.title(tables, names), head.verdicts(tables)]
    parts += [head.beware(tables, health(read), names), head.numbers(tables)]
    links = [("verdict", "Verdict")]
    for section in sections(PLOTS):
        body = _section(section, tables, names, figures, out)
        if body:
            links.append((section.name, section.short))
            parts.append(body)
    data = _viewer(tables, names, read)
    parts += [data[0], _measured(read)]
    links += [("viewer", "Token viewer"), ("measured", "Measuring")]
    shown = names if len(names) <= MANY_RUNS else [f"{len(names)} runs"]
    title = f"entropy-lab: {', '.join(shown)}"
    body = figures.shared.defs() + "".join(parts)
    text = html.page(
        title, css(figures.shared), links, body, _foot(tables, command), data[1], viewer.script()
    )
    return _written(out / "report.html", text)


def health(read: Mapping[str, Path]) -> dict[str, Diagnosis]:
    """What `doctor` finds about each run, without a model; runs that it cannot read are absent."""
    found = {}
    for name, path in read.items():
        try:
            found[name] = doctor(path, None, "the report has no model")
        except RunError:
            continue  # the table warnings says what is damaged
    return found


def _section(
    section: Section, tables: Tables, names: list[str], figures: Figures, out: Path
) -> str:
    several = len(names) > 1
    if section.several and not several:
        return ""
    single_runs = names if len(names) <= MANY_RUNS else []  # of more, none is shown alone
    wanted = [f for f in section.figures if _fits(f, several, bool(single_runs))]
    command = f"entropy-lab plot {{}} --from {shlex.quote(str(out))} --out figures"
    drawn = [figures.html(f, heading(f), f"Drawn by {command.format(f)}.") for f in wanted]
    body = "".join(drawn) + _tables(section, tables, single_runs, several)
    if not single_runs and not body:
        return ""
    if not body:
        if not section.record:
            return ""
        body = html.missing(section.record)
    else:
        body += "".join(
            html.missing(f"{heading(f)}: {figures.missing[f]}")
            for f in wanted
            if f in figures.missing
        )
    return html.section(section.name, section.title, body, section.lead)


def _fits(figure: str, several: bool, single_runs: bool) -> bool:
    """Whether a figure is for this number of runs."""
    if figure not in PLOTS:
        return False
    if not several and set(PLOTS[figure].needs) & set(OF_SEVERAL):
        return False
    return single_runs or figure in OVER_METHODS


def _tables(section: Section, tables: Tables, runs: list[str], several: bool) -> str:
    made = [table(tables, run, several) for table in OF_A_RUN.get(section.name, ()) for run in runs]
    if section.name == "methods":
        made += [methods.methods(tables), _equal(tables), methods.fits(tables)]
        made += [methods.runs(tables), _left_out(len(tables["summary"]) - len(runs))]
    if section.name == "sums":
        made.append(methods.drifts(tables))
    if section.name == "evaluations":
        made.append(methods.passes(tables))
    return "".join(made)


def _equal(tables: Tables) -> str:
    equal = methods.equal_levels(tables)
    return f"<h3>At equal reward, at equal entropy</h3>{equal}" if equal else ""


def _left_out(runs: int) -> str:
    if not runs:
        return ""
    return html.note(
        f"Figures and tables of single runs are left out, because there are {runs} runs: analyze "
        "one alone to see its predictions and tokens."
    )


def _viewer(tables: Tables, names: list[str], read: Mapping[str, Path]) -> tuple[str, str]:
    """(section, data) of the token viewer."""
    if len(names) > 1:
        return viewer.without(
            "The token viewer is in the report of each run: entropy-lab analyze RUN_DIR writes "
            "RUN_DIR/analysis/report.html."
        ), ""
    if not read:
        return viewer.without("Token rows were not read (--no-tokens): analyze without it."), ""
    found = viewer.packed(read[names[0]], names[0], tables)
    if isinstance(found, str):
        return viewer.without(found), ""
    return viewer.section(found), viewer.elements(found)


def _measured(read: Mapping[str, Path]) -> str:
    parts = []
    for name, path in read.items():
        try:
            run = open_run(path)
        except RunError:
            continue
        parts.append(f"<h3>{html.text(name)}</h3>" + single.measured(run.info, run.meta))
    said = html.note(
        "dH: entropy after an optimizer step minus before, same rows, same layout, nats per token "
        "of softmax(logits / temperature); above 0, entropy rose. Means are weighted by 1 / "
        "inclusion probability. Closed forms assume independent softmax logits and plain SGD; path "
        "forms move the parameters as the step did."
    )
    return html.section("measured", "How it was measured", said + "".join(parts))


def _foot(tables: Tables, command: str) -> str:
    rows = records(tables["summary"])
    paths = ", ".join(str(r["path"]) for r in rows[:MANY_RUNS])
    more = len(rows) - MANY_RUNS
    paths += f" and {more} more (summary.parquet)" if more > 0 else ""
    return (
        f"<p>Made by <code>{html.text(command)}</code> from {html.text(paths)}. The "
        "numbers are in the .parquet files beside this report, the figures in figures/.</p>"
    )


def _written(path: Path, text: str) -> Path:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return path
