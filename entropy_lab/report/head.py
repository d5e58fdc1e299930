"""The top of a report: what was found, what to beware of, and the key numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from entropy_lab.analysis.doctor import Diagnosis
from entropy_lab.analysis.tables import Row, records
from entropy_lab.report import html, methods
from entropy_lab.report.html import Raw
from entropy_lab.report.methods import MANY_RUNS
from entropy_lab.report.numbers import fixed, short, span
from entropy_lab.report.text import grouped

Tables = Mapping[str, pd.DataFrame]

_SHOWN = 4  # findings of doctor that are not folded away
# Columns of the table effects, as sentences name them.
SHARES = {
    "touched_share": "touched",
    "clip_high_frac": "clipped from above",
    "clip_low_frac": "clipped from below",
}


def title(tables: Tables, names: Sequence[str]) -> str:
    """What this is a report of."""
    rows = records(tables["summary"])
    first = rows[0]
    if len(names) > 1:
        said = f"{len(names)} runs compared"
        below = ", ".join(f"{r['run']} ({r['method']})" for r in rows[:MANY_RUNS])
        below += ", ..." if len(rows) > MANY_RUNS else ""
    else:
        said = str(first["run"])
        parts = [first["method"], first["task"], f"{first['steps']} steps", first["status"]]
        below = " · ".join(str(p) for p in parts if p)
    return f'<h1>{html.text(said)}</h1><p class="sub">{html.text(below)}</p>'


def verdicts(tables: Tables) -> str:
    """What happened, which prediction to trust and how far, where it came from, what was done."""
    rows = records(tables["summary"])
    found = [str(row["verdict"]).splitlines() for row in rows]
    lines = [*found[0], *did(tables, rows[0])]
    if len(rows) > 1:  # what each run did; the rest is in the report of that run alone
        lines = methods.verdict(tables)
        if len(rows) <= MANY_RUNS:
            lines += [f"{r['run']}: {v[0]}" for r, v in zip(rows, found, strict=True)]
    look = "verdict" if len(rows) == 1 else "verdict all"
    return (
        f'<section class="{look}" id="verdict" aria-labelledby="h-verdict">'
        f'<h2 id="h-verdict">Verdict</h2>{html.paragraphs(lines)}</section>'
    )


def did(tables: Tables, summary: Row) -> list[str]:
    """What the method did to the tokens, in a sentence; nothing where that is not logged."""
    rows = {r["quantity"]: r for r in records(tables["effects"], run=summary["run"], of="mean")}
    parts = [f"{said} {share(rows[name])}" for name, said in SHARES.items() if name in rows]
    if not parts:
        return []
    if rows.get("touched_share", {}).get("value") == 0:
        return [f"What the method did: {summary['method']} touched no token of any step."]
    steps = max(r["steps"] for r in rows.values())
    return [
        f"What the method did: {summary['method']}, of the tokens of a step, {', '.join(parts)} "
        f"(mean of {steps} steps, 95 % t intervals)."
    ]


def share(row: Row) -> str:
    """A share of the tokens in per cent with its interval."""
    low, high = 100 * row["value_lo"], 100 * row["value_hi"]
    band = f" [{max(low, 0):.2g}, {high:.2g}]" if math.isfinite(low) else ""
    return f"{100 * row['value']:.2g} %{band}"


def beware(tables: Tables, health: Mapping[str, Diagnosis], names: Sequence[str]) -> str:
    """The warnings of the analysis and what `entropy-lab doctor` found."""
    rows = grouped(tables["warnings"])
    lines: list[html.Cell] = [_levelled(level, said) for level, said in rows]
    found: list[html.Cell] = []
    for run, diagnosis in health.items():
        whose = f"{run}: " if len(names) > 1 else ""
        bad = [f for f in diagnosis.findings if f.level in ("error", "warning")]
        for f in bad:
            said = " ".join(f"{part.rstrip('.')}." for part in (f.seen, f.means, f.do) if part)
            found.append(_levelled(f"doctor, {f.level}", f"{whose}{f.check}: {said}"))
        if not bad:
            passed = len(diagnosis.of_level("ok"))
            lines.append(
                _levelled("doctor", f"{whose}{passed} checks passed, no error, no warning.")
            )
    if not health:
        lines.append(_levelled("doctor", "not run here: entropy-lab doctor RUN_DIR checks a log."))
    more = html.paragraphs(found[_SHOWN:])
    if more:
        number = f"{len(found) - _SHOWN} more findings of doctor"
        more = f"<details><summary>{number}</summary>{more}</details>"
    return (
        '<section class="warn" id="warnings" aria-labelledby="h-warnings">'
        '<h2 id="h-warnings">What to beware of</h2>'
        f"{html.paragraphs([*lines, *found[:_SHOWN]])}{more}</section>"
    )


def _levelled(level: str, said: str) -> Raw:
    return Raw(f"<b>{html.text(level.capitalize())}.</b> {html.text(said)}")


def numbers(tables: Tables) -> str:
    """The key numbers of a single run, each with its interval."""
    if len(tables["summary"]) > 1:
        return ""
    (row,) = records(tables["summary"])
    found = {(r["quantity"], r["of"]): r for r in records(tables["effects"])}
    items = []
    for label, name in (("entropy", "entropy_token_mean"), ("reward", "reward")):
        for of in ("first", "last"):
            r = found.get((name, of))
            unit = "nats per token" if name == "entropy_token_mean" else ""
            items.append((f"{of} {label}", *_banded(r, fixed, unit)))
    for label, name in (("dH, held-out", "dH_heldout"), ("dH, own tokens", "dH_train")):
        items.append((label, *_banded(found.get((name, "mean")), short, "nats a step")))
    states = f"{row['unique_states']:,}" if row["unique_states"] else "–"
    items += [
        ("token rows", f"{row['tokens']:,}", f"of {row['probed_steps']} probed steps"),
        ("unique states", states, "" if row["unique_states"] else "not recorded"),
        ("gradient audit", short(row["gradient_audit"]), "largest of any step"),
    ]
    said = "First and last: means of five steps. Brackets: 95 % t intervals over the steps."
    return html.cards(items) + html.note(said) + _floor(row) + _response(row)


def _banded(row: Row | None, written, unit: str) -> tuple[str, str]:
    """(value, interval and unit) as a card shows them."""
    if row is None:
        return "–", "not logged"
    low, high = row["value_lo"], row["value_hi"]
    band = f"[{written(low)}, {written(high)}]" if math.isfinite(low) else "one step, no interval"
    return written(row["value"]), f"{band} {unit}".strip()


def _floor(row: Row) -> str:
    if not math.isfinite(row["floor"]):
        said = (
            "No noise floor was measured (probe.floor_every measures it), so changes that are too "
            "small to be known carry no mark."
        )
        return html.note(said) if row["tokens"] else ""
    said = (
        f"Noise floor: {short(row['floor'])} nats (rms against float64). "
        f"{row['under_floor']:.1%} of the tokens have |dH| under two floors, so their sign and "
        "size are not known"
    )
    if math.isfinite(row["ceiling"]):
        said += f"; no predictor can reach a PCC in a step above {row['ceiling']:.4g}"
    said += "."
    if math.isfinite(row["moved_bfloat16"]):
        said += (
            f" A step moves {row['moved_bfloat16']:.0%} of the weights once they are rounded to "
            "bfloat16: that part of it a sampler on such weights sees."
        )
    return html.note(said)


def _response(row: Row) -> str:
    """The two terms of a response's entropy in a sentence; nothing where they are not logged."""
    if not row.get("terms_steps"):
        return ""
    local, moved = (
        f"{short(row[name])} {span(row[f'{name}_lo'], row[f'{name}_hi'])}".strip()
        for name in ("local_term", "visitation_term")
    )
    of = "held-out responses" if row["terms_of"] == "heldout" else "the update's own responses"
    said = (
        f"A response's entropy changed by {local} nats a step where its tokens stood, and by "
        f"{moved} because other tokens come next ({of}, mean of {row['terms_steps']} steps; "
        "brackets: 95 % t intervals over steps)."
    )
    return html.note(said)
