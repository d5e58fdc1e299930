"""The token viewer's part of the page: its controls, and the data beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from entropy_lab.analysis.tables import records
from entropy_lab.errors import RunError
from entropy_lab.record import open_run
from entropy_lab.report import html
from entropy_lab.report.style import asset
from entropy_lab.report.viewer.encode import PRECISION, plain_json
from entropy_lab.report.viewer.pack import Packed, Slopes, pack_run

NAME = "viewer"
_SCRIPTS = ("data", "text", "colour", "list", "cards", "panel", "plot", "groups", "strongest")
_RECORD = (
    "No token rows were recorded: set probe.enabled = true (or put a Probe around the optimizer "
    "step), then analyze again without --no-tokens."
)


def script() -> str:
    """The page's one script: the theme switch and the viewer."""
    parts = [asset("theme.js"), *(asset(f"viewer_{name}.js") for name in _SCRIPTS)]
    parts += [asset("viewer.js"), "watchViewer();\n"]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def packed(path: Path, name: str, tables: Mapping[str, pd.DataFrame]) -> Packed | str:
    """The run's tokens for the page, or why there are none."""
    try:
        run = open_run(path)
        if not run.token_files:
            return _RECORD
        return pack_run(run, name, slopes(tables["validation_steps"], name))
    except RunError as error:
        return f"{_RECORD} ({error})"


def slopes(steps: pd.DataFrame, run: str) -> Slopes:
    """(step, predictor) -> least-squares factor of dH on the prediction."""
    rows = records(steps[["run", "step", "predictor", "slope", "stratum"]], run=run, stratum="all")
    return {(int(r["step"]), str(r["predictor"])): float(r["slope"]) for r in rows}


def section(data: Packed) -> str:
    """The viewer, hidden until its script has read the data."""
    meta = data.meta
    lead = (
        "Each response with its tokens coloured by what the update did to them, what was "
        "predicted, and what their push was."
    )
    about = (
        f"In this file: {meta['how']}; {meta['tokens']:,} tokens of {len(meta['steps'])} steps, "
        f"{len(meta['quantities'])} quantities, {data.size / 1e6:.1f} MB; numbers within "
        f"{PRECISION:.1%}. Only rows in the loss of their step. Slope: of the step, as in "
        "validation_steps.parquet."
    )
    if not meta["named"]:
        about += (
            " The run has no vocab.json (the bundled trainer writes it; Probe(…, vocab=…)), so "
            "tokens stand as their ids, and texts are those of the responses."
        )
    body = (
        html.note(about) + "<noscript>" + html.missing("The viewer needs JavaScript.")
        + '</noscript><div id="tv-place"><p class="missing" id="tv-failed" role="alert" hidden></p>'
        + asset("viewer.html") + "</div>"
    )  # fmt: skip
    return html.section(NAME, "Token viewer", body, lead)


def without(why: str) -> str:
    """The section where there is nothing to view."""
    return html.section(NAME, "Token viewer", html.missing(why))


def elements(data: Packed) -> str:
    """The data as script elements, which no browser runs."""
    blobs = "".join(
        f'<script type="text/plain" id="tv-blob-{name}">{text}</script>'
        for name, text in data.blobs.items()
    )
    meta = plain_json(data.meta)
    return f'<script type="application/json" id="tv-meta">{meta}</script>{blobs}'
