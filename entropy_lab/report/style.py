"""The look of the report: light and dark by the reader's setting or switch; print is light."""

from __future__ import annotations

from importlib import resources

from entropy_lab.report.svg import Shared

# name: (light, dark). rise and fall are mixed into the paper behind text: both keep its contrast.
COLOURS = {
    "--paper": ("#ffffff", "#16191d"),
    "--ink": ("#22262b", "#e6e8eb"),
    "--soft": ("#59616c", "#a3acb6"),
    "--line": ("#e3e6ea", "#2c3138"),
    "--edge": ("#868e98", "#727b86"),
    "--card": ("#f6f7f9", "#1d2126"),
    "--blue": ("#00659e", "#56b4e9"),
    "--warn": ("#98480a", "#f0b060"),
    "--warnbg": ("#fff7ed", "#2a2218"),
    "--rise": ("#f5a35c", "#9c4a00"),
    "--fall": ("#74b5e6", "#0f5c93"),
    "--rise-line": ("#d55e00", "#e28e4d"),
    "--fall-line": ("#0072b2", "#4d9cc9"),
}


def asset(name: str) -> str:
    """A file of report/static as text."""
    return (resources.files("entropy_lab.report") / "static" / name).read_text(encoding="utf-8")


def css(shared: Shared) -> str:
    """The page's style sheet, with the colours of its figures."""
    light, dark = (_declared(shared, i) for i in (False, True))
    themes = (
        f":root{{{light}color-scheme:light}}"
        f":root[data-theme=dark]{{{dark}color-scheme:dark}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light])"
        f"{{{dark}color-scheme:dark}}}}"
        f"@media print{{:root:root:root:root{{{light}color-scheme:light}}}}"
    )
    return f"{themes}\n{asset('report.css')}{asset('viewer.css')}"


def _declared(shared: Shared, dark: bool) -> str:
    own = "".join(f"{name}:{pair[dark]};" for name, pair in COLOURS.items())
    return own + shared.css(dark)
