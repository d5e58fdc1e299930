"""The tables of the report that come from deep steps: error budget and influence scores."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from entropy_lab.analysis.tables import TARGETS, Row, records
from entropy_lab.report import html
from entropy_lab.report.html import Cell
from entropy_lab.report.numbers import band, percent, short

Tables = Mapping[str, pd.DataFrame]


def budget(tables: Tables, run: str, several: bool) -> str:
    """Every rung of the error budget with its intervals."""
    rows = records(tables["budget"], run=run)
    lines: list[list[Cell]] = [
        [
            r["form"], r["adds"] or "beside the ladder", band(r), percent(r, "explained", 1),
            percent(r, "added", 1) if r["rung"] else "–",
            f"{r['difference']:.1%}" if r["rung"] > 1 else "–", short(r["slope"]),
        ]
        for r in rows
    ]  # fmt: skip
    head = ["form", "takes in", "PCC in a step", "explained", "added", "difference", "slope"]
    note = (
        "Shares of the variance of dH in a step, every form scaled by its own slope, means over "
        "steps. Added: beyond the rung below; adds up to 100 % over the ladder. Difference: "
        "variance of the difference to the rung below; where it exceeds what is added, the rungs "
        "err in different places."
    )
    return _details("Error budget in numbers", head, lines, 2, note, rows, run if several else "")


def influence(tables: Tables, run: str, several: bool) -> str:
    """Each form against every target: correlations, signs and what its top 1 % hold."""
    rows = records(tables["influence"], run=run)
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for r in rows:
        found.setdefault((r["kind"], r["predictor"]), {})[r["target"]] = r
    lines: list[list[Cell]] = []
    for (kind, name), by_target in found.items():
        line: list[Cell] = [name if kind == "form" else f"{name} / push"]
        for target in TARGETS:
            r = by_target.get(target)
            if r is None:
                line += ["–"] * 4
            else:
                line += [band(r), band(r, "srcc"), percent(r, "sign"), percent(r, "capture", 1)]
        lines.append(line)
    names = [f"{what}, {t}" for t in TARGETS for what in ("PCC", "SRCC", "sign", "top 1 %")]
    note = (
        "Medians over steps. “/ push”: the form per unit of the token's push. Top 1 %: share of "
        "the sum of |target| in the 1 % of the tokens with the largest |score|."
    )
    head = ["score", *names]
    return _details("Scores in numbers", head, lines, 1, note, rows, run if several else "")


def _details(
    title: str, head: list[str], lines: list[list[Cell]], words: int, note: str, rows: list[Row],
    run: str,
) -> str:  # fmt: skip
    if not lines:
        return ""
    n, steps = max(r["n"] for r in rows), max(r["steps"] for r in rows)
    note += f" n = {n:,} token rows of {steps} deep steps; brackets: 95 % intervals"
    note += f" ({rows[0]['unit']})."
    summary = html.text(f"{title}: {run}" if run else title)
    table = html.table(head, lines, words=words, caption=title)
    return f"<details><summary>{summary}</summary>{table}{html.note(note)}</details>"
