"""Small pieces of HTML; every text of a run is escaped here and nowhere else."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from entropy_lab.report.style import CSS


@dataclass(frozen=True)
class Raw:
    """HTML that was made here, as opposed to text, which is escaped."""

    text: str


Cell = str | Raw


def text(value: Cell) -> str:
    """Escaped text, or our own HTML unchanged."""
    return value.text if isinstance(value, Raw) else html.escape(str(value))


def paragraphs(lines: Iterable[Cell]) -> str:
    """One <p> per line."""
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def table(
    head: Sequence[str], rows: Iterable[Sequence[Cell]], *, words: int = 1, best: int | None = None
) -> str:
    """A table whose first `words` columns are text; row number `best` is emphasised."""

    def line(cells: Sequence[Cell], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=t' if i < words else ''}>{text(c)}</{tag}>"
            for i, c in enumerate(cells)
        )

    body = "".join(
        f"<tr{' class=best' if i == best else ''}>{line(cells, 'td')}</tr>"
        for i, cells in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(light: str, dark: str, caption: str, name: str) -> str:
    """A figure embedded as SVG, drawn once for light and once for dark readers."""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark)}">'
        f'<img src="{_uri(light)}" alt="{text(name)}"></picture>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def cards(items: Iterable[tuple[str, str]]) -> str:
    """Key numbers: (label, value)."""
    inner = "".join(
        f'<div class="card"><span>{text(label)}</span><b>{text(value)}</b></div>'
        for label, value in items
    )
    return f'<div class="cards">{inner}</div>'


def page(title: str, body: str) -> str:
    """The whole document; it loads nothing from anywhere."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
