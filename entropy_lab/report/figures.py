"""The figures of a report: drawn by entropy_lab.plots, embedded once for both themes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from entropy_lab.analysis.store import read_tables
from entropy_lab.errors import RunError
from entropy_lab.plots import PLOTS, make, svg, write
from entropy_lab.plots.style import Drawing, theme
from entropy_lab.report import html
from entropy_lab.report.svg import Shared, inline

Tables = Mapping[str, pd.DataFrame]

_LARGEST_SVG = 400_000  # characters above which a figure is embedded as a picture
_DPI = 170


@dataclass
class Figures:
    """Draws figures into OUT/figures and gives their HTML.

    tables: of the analysis; folder: where its tables lie, for those of other commands (replay).
    shared: what the page has to declare; missing: name -> why a figure was not drawn.
    """

    tables: Tables
    folder: Path
    shared: Shared = field(default_factory=Shared)
    missing: dict[str, str] = field(default_factory=dict)

    def html(self, name: str, title: str, source: str) -> str:
        """<figure> of `name` with its caption and where it is from; "" where it lacks data."""
        try:
            needed = self._needed(name)
            with theme("light"):
                drawing = make(name, needed)
                light = svg(drawing)
                write(name, drawing, self.folder / "figures", ("pdf", "png"))
            with theme("dark"):
                other = make(name, needed)
                dark = svg(other)
        except RunError as error:
            self.missing[name] = str(error)
            return ""
        label = html.text(f"{title}: {drawing.caption}")
        picture = inline(light, dark, label, self.shared)
        if not picture or len(picture) > _LARGEST_SVG:
            picture = html.picture(_png(drawing, "light"), _png(other, "dark"), label)
        files = f"figures/{name}.pdf"
        figure = html.figure(picture, drawing.caption, f"{source} Also in {files}.")
        return f"<h3>{html.text(title)}</h3>{figure}"

    def _needed(self, name: str) -> dict[str, pd.DataFrame]:
        """The tables that a figure reads; those that another command made are read from disk.

        Raises RunError where one that it cannot do without is missing.
        """
        plot = PLOTS[name]
        optional = [t for t in getattr(plot, "also", ()) if self._exists(t)]
        wanted = [*plot.needs, *optional]
        absent = [table for table in wanted if table not in self.tables]
        extra = read_tables([self.folder], absent) if absent else {}
        return {**{n: self.tables[n] for n in wanted if n in self.tables}, **extra}

    def _exists(self, table: str) -> bool:
        return table in self.tables or (self.folder / f"{table}.parquet").exists()


def _png(drawing: Drawing, look: str) -> str:
    """The figure as a data URI of a PNG with at most 256 colours."""
    from PIL import Image

    raw = io.BytesIO()
    with theme("dark" if look == "dark" else "light"):
        drawing.figure.savefig(raw, format="png", dpi=_DPI)
    small = io.BytesIO()
    Image.open(raw).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode("ascii")
