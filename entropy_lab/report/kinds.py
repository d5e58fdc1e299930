"""The tables of the report that tell kinds of tokens apart."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from entropy_lab.analysis.strata import clear_sign
from entropy_lab.analysis.tables import QUADRANTS, Row, records
from entropy_lab.plots.quadrants import LABELS
from entropy_lab.plots.style import mark
from entropy_lab.report import html
from entropy_lab.report.html import Cell, Raw
from entropy_lab.report.numbers import band, percent

Tables = Mapping[str, pd.DataFrame]

# Kinds of strata whose bins do not name themselves.
_NAMED = {"position": "position", "states": "rows in the same state:", "stage": "stage"}
_UNDER = (
    "†: more than half of the rows have |dH| under two noise floors; signs and correlations there "
    "are largely those of rounding."
)
_REVERSED = (
    "‡: the correlation has the other sign than over all tokens, and both 95 % intervals leave 0 "
    "out."
)


def signs(tables: Tables, run: str, several: bool) -> str:
    """How often each form has the sign of dH, by sign region."""
    rows = records(tables["validation"], run=run, scope="within_step")
    places = {r["quadrant"]: r for r in records(tables["quadrants"], run=run, quantity="dH")}
    found: dict[str, dict[str, Row]] = {}
    for r in rows:
        if math.isfinite(r["sign"]):
            found.setdefault(r["stratum"], {})[r["predictor"]] = r
    names = [q for q in QUADRANTS if q in places and q in found]
    if not names:
        return ""
    predictors = list(dict.fromkeys(r["predictor"] for r in rows))
    lines = []
    for name in names:
        place = places[name]
        shown = [found[name].get(predictor) for predictor in predictors]
        cells = ["–" if row is None else percent(row, "sign") for row in shown]
        label = LABELS[name] + mark(place["under_floor"])
        lines.append([label, f"{place['n']:,}", f"{place['falls']:.0%}", *cells])
    unit = records(tables["summary"], run=run)[0]["unit"]
    note = (
        "Share of the tokens, of those where neither side is 0, whose change has the predicted "
        "sign. “dH < 0”: how often dH falls; always predicting a fall would be right as often. "
        f"Path forms: deep steps. Brackets: 95 % intervals ({unit})."
    )
    title = "Is the sign right, by sign region" + (f": {run}" if several else "")
    head = ["sign region", "rows", "dH < 0", *predictors]
    return html.table(head, lines, caption=title) + _notes(lines, note)


def strata(tables: Tables, run: str, several: bool) -> str:
    """PCC within a step of each form in every stratum."""
    rows = records(tables["validation"], run=run, scope="within_step")
    if not rows:
        return ""
    predictors = list(dict.fromkeys(r["predictor"] for r in rows))
    cells: dict[str, dict[str, Row]] = {}
    for r in [*rows, *records(tables["strata"], run=run)]:
        kind = f"{_NAMED[r['kind']]} {r['stratum']}" if r.get("kind") in _NAMED else r["stratum"]
        cells.setdefault(kind, {})[r["predictor"]] = r
    whole = cells["all"]
    lines = [
        [stratum + mark(max(r["under_floor"] for r in found.values()))]
        + [f"{max(r['n'] for r in found.values()):,}"]
        + [_correlation(found.get(p), whole.get(p)) for p in predictors]
        for stratum, found in cells.items()
    ]
    title = "Correlation within a step by kind of token" + (f": {run}" if several else "")
    return (
        f"<details><summary>{html.text(title)}</summary>"
        f"{html.table(['stratum', 'rows', *predictors], lines, caption=title)}{_notes(lines)}"
        "</details>"
    )


def _correlation(row: Row | None, whole: Row | None) -> Cell:
    if row is None:
        return "–"
    text = band(row)
    if whole is not None and clear_sign(row) * clear_sign(whole) < 0:
        return Raw(f"{text.text} ‡")
    return text


def _notes(lines: list[list[Cell]], *more: str) -> str:
    """A paragraph with `more` and what the marks in the table mean, as far as it has any."""
    shown = "".join(cell.text if isinstance(cell, Raw) else cell for line in lines for cell in line)
    notes = [*more, *(note for note in (_UNDER, _REVERSED) if note[0] in shown)]
    return f'<p class="note">{html.text(" ".join(notes))}</p>' if notes else ""
