"""A figure drawn for light and for dark pages as one inline SVG whose colours follow the theme."""

from __future__ import annotations

import re
from collections.abc import Iterable

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_ID = re.compile(r'\bid="([^"]+)"')
_PATH = re.compile(r'\bd="[^"]*"')
_DIGITS = re.compile(r"(\.\d{2})\d+")
_LEFT_OUT = (
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r"<style[^>]*>.*?</style>", re.DOTALL),  # of a page it would be the whole page's
    re.compile(r"<!--.*?-->", re.DOTALL),
)


class ThemeColours:
    """The pairs (light, dark) of colours of a page, each a CSS variable."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def variable(self, light: str, dark: str) -> str:
        if light == dark:
            return light
        name = self._names.setdefault((light, dark), f"--k{len(self._names)}")
        return f"var({name})"

    def css(self, dark: bool) -> str:
        """Declarations of all variables for one theme."""
        return "".join(f"{name}:{pair[dark]};" for pair, name in self._names.items())


def inline(name: str, light: str, dark: str, label: str, colours: ThemeColours) -> str:
    """One <svg role="img"> for both themes; "" where the two differ in more than colours.

    light, dark: the SVG texts; label: escaped text that stands for the figure.
    """
    first, second = (_COLOUR.split(_body(name, svg)) for svg in (light, dark))
    if first != second:
        return ""
    pairs = zip(*(_COLOUR.findall(_body(name, svg)) for svg in (light, dark)), strict=True)
    text = _joined(first, [colours.variable(a.lower(), b.lower()) for a, b in pairs])
    box = re.search(r'viewBox="([^"]+)"', light)
    if box is None:
        return ""
    return (
        f'<svg class="figure" role="img" aria-label="{label}" viewBox="{box[1]}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{text}</svg>'
    )


def _body(name: str, svg: str) -> str:
    """What stands inside <svg>, with ids that are the page's own and coordinates to 0.01 pt."""
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    for pattern in _LEFT_OUT:
        inner = pattern.sub("", inner)
    inner = _PATH.sub(lambda m: _DIGITS.sub(r"\1", m[0]), inner)
    for i, old in enumerate(dict.fromkeys(_ID.findall(inner))):
        new = f"{name}-{i}"
        inner = inner.replace(f'id="{old}"', f'id="{new}"')
        inner = inner.replace(f'"#{old}"', f'"#{new}"').replace(f"url(#{old})", f"url(#{new})")
    return re.sub(r">\s+<", "><", inner).strip()


def _joined(parts: list[str], between: Iterable[str]) -> str:
    out = [parts[0]]
    for colour, part in zip(between, parts[1:], strict=True):
        out += [colour, part]
    return "".join(out)
