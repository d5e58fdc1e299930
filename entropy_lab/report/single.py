"""Tables of one run: how well each prediction did, what the method did, how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from entropy_lab.analysis.effects import SCALAR
from entropy_lab.analysis.tables import Row, records
from entropy_lab.report import html
from entropy_lab.report.head import SHARES, share
from entropy_lab.report.html import Cell, Raw
from entropy_lab.report.numbers import band, fixed, percent, short, span

Tables = Mapping[str, pd.DataFrame]


def validation(tables: Tables, run: str, several: bool) -> str:
    """Every prediction with its correlations, sign, size and rows."""
    rows = records(tables["validation"], run=run, stratum="all")
    by_scope = {(r["scope"], r["predictor"]): r for r in rows}
    within = sorted((r for r in rows if r["scope"] == "within_step"), key=lambda r: -r["pcc"])
    if not within:
        return ""
    head = ["predictor", "PCC in a step", "pooled", "trimmed", "in a group", "SRCC", "sign",
            "top 1 %", "slope", "MSE", "rows", "steps"]  # fmt: skip
    lines = [_prediction(r, by_scope) for r in within]
    unit = records(tables["summary"], run=run)[0]["unit"]
    most = max(r["oracle"] for r in within)
    said = (
        "PCC in a step: median over steps ≥ 5. Trimmed: rows with |dH| up to its 99 % quantile of "
        "the step. In a group: deviations from prompt-group means. Slope: dH per predicted dH, "
        "through the origin; 1 would be calibrated. Top 1 %: share of the sum of |dH| that the 1 % "
        f"of the tokens with the largest |prediction| hold; at most {most:.0%} can be held. "
        f"Brackets: 95 % intervals ({unit}). From validation.parquet."
    )
    caption = "How well each prediction did" + (f": {run}" if several else "")
    return html.table(head, lines, best=0, caption=caption) + html.note(said)


def _prediction(r: Row, by_scope: Mapping[tuple[str, str], Row]) -> list[Cell]:
    pooled = by_scope["pooled", r["predictor"]]
    group = by_scope["within_group", r["predictor"]]
    slope = Raw(f"{short(r['slope'])} <small>{span(r['slope_lo'], r['slope_hi'])}</small>")
    return [
        r["predictor"], band(r), band(pooled), fixed(r["pcc_trim99"]), fixed(group["pcc"]),
        fixed(r["srcc"]), percent(r, "sign"), percent(r, "capture", 1), slope,
        short(r["mse"]), f"{r['n']:,}", str(r["steps"]),
    ]  # fmt: skip


def method(tables: Tables, run: str, several: bool) -> str:
    """Shares of touched tokens, and what the method says of itself, means over steps."""
    rows = records(tables["effects"], run=run, of="mean")
    lines: list[list[Cell]] = []
    for r in rows:
        if r["quantity"] in SHARES:
            said = f"tokens {SHARES[r['quantity']]}"
            lines.append([said, share(r), str(r["steps"])])
    for r in rows:
        if r["quantity"].startswith(SCALAR):
            ends = f" <small>{html.text(span(r['value_lo'], r['value_hi']))}</small>"
            value = Raw(html.text(short(r["value"])) + ends)
            lines.append([r["quantity"].removeprefix(SCALAR), value, str(r["steps"])])
    if not lines:
        return ""
    name = records(tables["summary"], run=run)[0]["method"]
    caption = f"{name}, means over steps" + (f": {run}" if several else "")
    note = (
        "Touched: clipped, selected or reweighted. Other rows: what the method says of itself "
        "(method_* in the steps table). Brackets: 95 % t intervals over the steps, which follow "
        "one another. From effects.parquet."
    )
    table = html.table(["", "mean of a step", "steps"], lines, caption=caption)
    return table + html.note(note)


def measured(info: Mapping[str, Any], meta: Mapping[str, str]) -> str:
    """The settings, versions and hardware of a run, as run.json has them."""
    lines: list[list[Cell]] = []
    config = info.get("config") or {}
    for section, values in config.items():
        if isinstance(values, Mapping):
            for key, v in values.items():
                lines.append([f"{section}.{key}", _value(v)])
        else:
            lines.append([str(section), _value(values)])
    facts = [
        (key, info[key])
        for key in ("started", "finished", "status", "git_commit", "cpu", "gpu", "threads", "seeds")
        if info.get(key) is not None
    ]
    facts += [*(info.get("versions") or {}).items(), *((f"log: {k}", v) for k, v in meta.items())]
    about: list[list[Cell]] = [
        [str(key), _value(value)] for key, value in facts if value is not None
    ]
    tables = html.table(["fact", "value"], about, words=2, caption="Run, versions, hardware")
    if lines:
        tables += html.table(["setting", "value"], lines, words=2, caption="Settings")
    return f"<details><summary>Settings and versions</summary>{tables}</details>"


def _value(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
