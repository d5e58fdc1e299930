"""The report of an analysis: one HTML file that needs nothing else, verdict first."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from entropy_lab.analysis.tables import Row, records
from entropy_lab.errors import RunError
from entropy_lab.plots import PLOTS, make, svg, write
from entropy_lab.plots.style import theme
from entropy_lab.report import html, methods
from entropy_lab.report.deep import budget, influence
from entropy_lab.report.html import Raw
from entropy_lab.report.kinds import signs, strata
from entropy_lab.report.methods import MANY_RUNS
from entropy_lab.report.numbers import band as _band
from entropy_lab.report.numbers import fixed as _fix
from entropy_lab.report.numbers import percent
from entropy_lab.report.numbers import short as _short
from entropy_lab.report.numbers import span as _range
from entropy_lab.report.text import grouped

Tables = Mapping[str, pd.DataFrame]

HEADINGS = {
    "entropy_reward": "What happened",
    "predicted_vs_actual": "Predicted against measured",
    "calibration": "Are the sizes right",
    "error_budget": "Where the predictions go wrong",
    "influence_scores": "Whose push it was",
    "quadrants": "Which tokens did it",
    "regions": "Where the change lives",
    "drift": "Do the predictions add up",
    "methods_summary": "Which method ends where",
    "methods_curves": "How they got there",
}
OVER_METHODS = ("methods_summary", "methods_curves", "drift")  # legible with any number of runs


def write_report(tables: Tables, out: Path, command: str) -> Path:
    """Draw OUT/figures/*.{pdf,png} and write OUT/report.html; `command` made the tables.

    Raises RunError where OUT cannot be written.
    """
    names = list(tables["summary"]["run"])
    single = names if len(names) <= MANY_RUNS else []  # of more, none is shown alone
    known = [name for name in HEADINGS if set(PLOTS[name].needs) <= set(tables)]
    drawn = [name for name in known if single or name in OVER_METHODS]
    sections = dict.fromkeys(PLOTS, "")
    sections |= {name: _figure(name, tables, out / "figures") for name in drawn}
    sums = [sections["drift"], methods.drifts(tables), methods.passes(tables)]
    body = [_head(tables, names), _verdicts(tables), _warnings(tables), _numbers(tables)]
    several = len(names) > 1
    if several:
        body += [*_over_methods(tables, sections), *sums, _left_out(len(names) - len(single))]
    body += [sections["entropy_reward"], sections["predicted_vs_actual"]]
    body += [_validation(tables, name, several) for name in single]
    body += [sections["calibration"], sections["error_budget"]]
    body += [budget(tables, name, several) for name in single]
    body.append(sections["influence_scores"])
    body += [influence(tables, name, several) for name in single]
    body.append(sections["quadrants"])
    body += [signs(tables, name, several) for name in single]
    body.append(sections["regions"])
    body += [strata(tables, name, several) for name in single]
    body += [] if several else sums
    body.append(_foot(tables, command))
    path = out / "report.html"
    temporary = out / "report.html.tmp"
    try:
        title = f"entropy-lab: {', '.join(single) or f'{len(names)} runs'}"
        temporary.write_text(html.page(title, "".join(body)), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _figure(name: str, tables: Tables, folder: Path) -> str:
    if any(needed not in tables or tables[needed].empty for needed in PLOTS[name].needs):
        return ""
    with theme("light"):
        drawing = make(name, dict(tables))
        light = svg(drawing)
        write(name, drawing, folder, ("pdf", "png"))
    with theme("dark"):
        dark = svg(make(name, dict(tables)))
    picture = html.figure(light, dark, drawing.caption, HEADINGS[name])
    return f"<h2>{html.text(HEADINGS[name])}</h2>{picture}"


def _head(tables: Tables, names: list[str]) -> str:
    rows = records(tables["summary"])
    first = rows[0]
    if len(names) > 1:
        title = f"{len(names)} runs compared"
        below = ", ".join(f"{r['run']} ({r['method']})" for r in rows[:MANY_RUNS])
        below += ", ..." if len(rows) > MANY_RUNS else ""
    else:
        title = str(first["run"])
        parts = [first["method"], first["task"], f"{first['steps']} steps", first["status"]]
        below = " · ".join(str(p) for p in parts if p)
    return f'<h1>{html.text(title)}</h1><p class="sub">{html.text(below)}</p>'


def _verdicts(tables: Tables) -> str:
    rows = records(tables["summary"])
    verdicts = [str(row["verdict"]).splitlines() for row in rows]
    lines = verdicts[0]
    if len(rows) > 1:  # what each run did; the rest is in the report of that run alone
        lines = methods.verdict(tables)
        if len(rows) <= MANY_RUNS:
            lines += [f"{r['run']}: {v[0]}" for r, v in zip(rows, verdicts, strict=True)]
    look = "verdict" if len(rows) == 1 else "verdict all"
    return f'<section class="{look}">{html.paragraphs(lines)}</section>'


def _warnings(tables: Tables) -> str:
    rows = grouped(tables["warnings"])
    if not rows:
        return ""
    lines = [Raw(f"<b>{html.text(level.capitalize())}.</b> {html.text(t)}") for level, t in rows]
    return f'<section class="warn">{html.paragraphs(lines)}</section>'


def _over_methods(tables: Tables, sections: Mapping[str, str]) -> list[str]:
    """Methods first: where they end, how they got there, and what they have at equal levels."""
    equal = methods.equal_levels(tables)
    return [
        sections["methods_summary"],
        methods.methods(tables),
        sections["methods_curves"],
        f"<h2>At equal reward, at equal entropy</h2>{equal}" if equal else "",
        methods.fits(tables),
        methods.runs(tables),
    ]


def _left_out(runs: int) -> str:
    if not runs:
        return ""
    return (
        f'<p class="note">Figures and tables of single runs are left out, because there are {runs} '
        "runs: analyze one alone to see its predictions and tokens.</p>"
    )


def _numbers(tables: Tables) -> str:
    if len(tables["summary"]) > 1:
        return ""
    (row,) = records(tables["summary"])
    return html.cards(
        [
            (
                "entropy (nats)",
                f"{_fix(row['entropy_first'])} → {_fix(row['entropy_last'])}",
            ),
            ("reward", f"{_fix(row['reward_first'])} → {_fix(row['reward_last'])}"),
            ("dH, held-out", _short(row["dH_heldout"])),
            ("dH, own tokens", _short(row["dH_train"])),
            ("token rows", f"{row['tokens']:,}"),
            ("unique states", f"{row['unique_states']:,}" if row["unique_states"] else "–"),
            ("gradient audit", _short(row["gradient_audit"])),
        ]
    ) + _floor(row) + _response(row)


def _floor(row: Row) -> str:
    if not math.isfinite(row["floor"]):
        text = (
            "No noise floor was measured (probe.floor_every measures it), so changes that are too "
            "small to be known carry no mark."
        )
        return f'<p class="note">{text}</p>' if row["tokens"] else ""
    text = (
        f"Noise floor: {_short(row['floor'])} nats (rms against float64). "
        f"{row['under_floor']:.1%} of the tokens have |dH| under two floors, so their sign and "
        f"size are not known; no predictor can reach a PCC in a step above {row['ceiling']:.4g}."
    )
    if math.isfinite(row["moved_bfloat16"]):
        text += (
            f" A step moves {row['moved_bfloat16']:.0%} of the weights once they are rounded to "
            "bfloat16: that part of it a sampler on such weights sees."
        )
    return f'<p class="note">{html.text(text)}</p>'


def _response(row: Row) -> str:
    """The two terms of a response's entropy in a sentence; nothing where they are not logged."""
    if not row.get("terms_steps"):
        return ""
    local, moved = (
        f"{_short(row[name])} {_range(row[f'{name}_lo'], row[f'{name}_hi'])}".strip()
        for name in ("local_term", "visitation_term")
    )
    of = "held-out responses" if row["terms_of"] == "heldout" else "the update's own responses"
    text = (
        f"A response's entropy changed by {local} nats a step where its tokens stood, and by "
        f"{moved} because other tokens come next ({of}, mean of {row['terms_steps']} steps; "
        "brackets: 95 % t intervals over steps)."
    )
    return f'<p class="note">{html.text(text)}</p>'


def _validation(tables: Tables, run: str, several: bool) -> str:
    rows = records(tables["validation"], run=run, stratum="all")
    by_scope = {(r["scope"], r["predictor"]): r for r in rows}
    within = sorted((r for r in rows if r["scope"] == "within_step"), key=lambda r: -r["pcc"])
    if not within:
        return ""
    lines = []
    for r in within:
        pooled = by_scope["pooled", r["predictor"]]
        group = by_scope["within_group", r["predictor"]]
        lines.append(
            [
                r["predictor"],
                _band(r),
                _band(pooled),
                _fix(r["pcc_trim99"]),
                _fix(group["pcc"]),
                _fix(r["srcc"]),
                f"{r['sign']:.0%}",
                percent(r, "capture", 1),
                _short(r["slope"]),
                _short(r["mse"]),
                f"{r['n']:,}",
                str(r["steps"]),
            ]  # fmt: skip
        )
    head = ["predictor", "PCC in a step", "pooled", "trimmed", "in a group", "SRCC", "sign",
            "top 1 %", "slope", "MSE", "rows", "steps"]  # fmt: skip
    unit = records(tables["summary"], run=run)[0]["unit"]
    most = max(r["oracle"] for r in within)
    note = (
        "PCC in a step: median over steps ≥ 5. Trimmed: rows with |dH| up to its 99 % quantile of "
        "the step. In a group: deviations from prompt-group means. Slope: dH per predicted dH, "
        "through the origin; 1 would be calibrated. Top 1 %: share of the sum of |dH| that the 1 % "
        f"of the tokens with the largest |prediction| hold; at most {most:.0%} can be held. "
        f"Brackets: 95 % intervals ({unit})."
    )
    name = f"<h3>{html.text(run)}</h3>" if several else ""
    return f'{name}{html.table(head, lines, best=0)}<p class="note">{html.text(note)}</p>'




def _foot(tables: Tables, command: str) -> str:
    paths = ", ".join(str(p) for p in tables["summary"]["path"][:MANY_RUNS])
    more = len(tables["summary"]) - MANY_RUNS
    paths += f" and {more} more (summary.parquet)" if more > 0 else ""
    return (
        f"<footer><p>Made by <code>{html.text(command)}</code> from {html.text(paths)}. The "
        "numbers are in the .parquet files beside this report, the figures in figures/. "
        "dH &gt; 0: entropy rises; nats per token; means weighted by 1 / inclusion "
        "probability.</p></footer>"
    )
