"""Small pieces of HTML; every text of a run is escaped here and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Raw:
    """HTML that was made here, as opposed to text, which is escaped."""

    text: str


Cell = str | Raw


def text(value: Cell) -> str:
    """Escaped text, or our own HTML unchanged.

    What no HTML file can hold (lone surrogates, control characters) becomes U+FFFD.
    """
    if isinstance(value, Raw):
        return value.text
    return html.escape("".join(c if _allowed(c) else "\ufffd" for c in str(value)))


def _allowed(character: str) -> bool:
    code = ord(character)
    control = code < 0x20 and character not in "\t\n\r" or 0x7F <= code < 0xA0
    turns = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069  # the text that follows
    return not (control or turns or 0xD800 <= code <= 0xDFFF)


def paragraphs(lines: Iterable[Cell]) -> str:
    """One <p> per line."""
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def note(line: Cell) -> str:
    """A paragraph in small print."""
    return f'<p class="note">{text(line)}</p>'


def missing(line: Cell) -> str:
    """What to record where there is nothing to show."""
    return f'<p class="missing">{text(line)}</p>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    words: int = 1,
    best: int | None = None,
    caption: str = "",
) -> str:
    """A table whose first `words` columns are text; row number `best` is emphasised.

    The first cell of a row names it; `caption` says what the table shows.
    """

    def cell(value: Cell, i: int, tag: str) -> str:
        scope = " scope=col" if tag == "th" else ""
        if tag == "td" and i == 0:
            tag, scope = "th", " scope=row"
        return f"<{tag}{scope}{' class=t' if i < words else ''}>{text(value)}</{tag}>"

    def line(cells: Sequence[Cell], tag: str) -> str:
        return "".join(cell(c, i, tag) for i, c in enumerate(cells))

    body = "".join(
        f"<tr{' class=best' if i == best else ''}>{line(cells, 'td')}</tr>"
        for i, cells in enumerate(rows)
    )
    said = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" role="group" aria-label="table" tabindex="0"><table>{said}'
        f"<thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(picture: str, caption: str, source: str) -> str:
    """A figure with its sentence and the command that draws it."""
    return (
        f'<figure><div class="plot" tabindex="0" role="group" aria-label="figure">{picture}</div>'
        f"<figcaption>{text(caption)} "
        f'<span class="source">{text(source)}</span></figcaption></figure>'
    )


def picture(light: str, dark: str, label: str) -> str:
    """Two data URIs, of which the theme shows one; label: escaped text."""
    return (
        f'<img class="for-light" src="{light}" alt="{label}">'
        f'<img class="for-dark" src="{dark}" alt="{label}">'
    )


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Key numbers: (label, value, interval and unit of it)."""
    inner = "".join(
        f'<div class="card"><dt>{text(label)}</dt><dd><b>{text(value)}</b>'
        f"{f' <small>{text(band)}</small>' if band else ''}</dd></div>"
        for label, value, band in items
    )
    return f'<dl class="cards">{inner}</dl>'


def section(name: str, title: Cell, body: str, lead: str = "") -> str:
    """A section with its heading, which the navigation names."""
    below = f'<p class="lead">{text(lead)}</p>' if lead else ""
    return (
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{text(title)}</h2>'
        f"{below}{body}</section>"
    )


def page(
    title: str, css: str, links: Iterable[tuple[str, str]], body: str, foot: str, data: str,
    script: str,
) -> str:  # fmt: skip
    """The whole document; it loads nothing from anywhere and runs no script but `script`.

    links: (id, text) of the sections; data: script elements that hold data, after all else so that
    the page is there before them.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    menu = "".join(f'<li><a href="#{name}">{text(said)}</a></li>' for name, said in links)
    options = "".join(
        f'<option value="{value}">{said}</option>'
        for value, said in (("auto", "system"), ("light", "light"), ("dark", "dark"))
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{text(title)}</title><style>{css}</style></head>"
        '<body><a class="skip" href="#main">Skip to the verdict</a>'
        f'<header class="top"><nav aria-label="Sections"><ul>{menu}</ul></nav>'
        f'<label>Theme <select id="theme">{options}</select></label></header>'
        f'<main id="main" tabindex="-1">{body}</main><footer>{foot}</footer>'
        f"{data}<script>{script}</script></body></html>\n"
    )
