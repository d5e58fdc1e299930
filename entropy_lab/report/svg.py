"""A figure drawn for light and for dark pages as one inline SVG whose colours follow the theme."""

from __future__ import annotations

import re
from collections.abc import Iterable

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_ID = re.compile(r'\bid="([^"]+)"')
_USED = re.compile(r'(?:xlink:href="#|url\(#)([^")]+)')
_PATH = re.compile(r'\bd="[^"]*"')
_DIGITS = re.compile(r"(\.\d{2})\d+")
_SPACES = re.compile(r"\s*([A-Za-z])\s*|\s+")
_GLYPH = re.compile(r'<path id="([^"]+)" (d="[^"]*" transform="scale\(0\.015625\)")/>')
_MOVED = re.compile(r'transform="translate\(([-\d.]+) 0\)"')
_LEFT_OUT = (
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r"<style[^>]*>.*?</style>", re.DOTALL),  # of a page it would be the whole page's
    re.compile(r"<!--.*?-->", re.DOTALL),
)


class Shared:
    """What the figures of a page share: colours, as CSS variables, and the outlines of letters."""

    def __init__(self) -> None:
        self._colours: dict[tuple[str, str], str] = {}
        self._glyphs: dict[str, str] = {}
        self._figures = 0

    def colour(self, light: str, dark: str) -> str:
        """The colour itself where both themes have it, else its variable."""
        if light == dark:
            return light
        return f"var({self._colours.setdefault((light, dark), f'--k{len(self._colours)}')})"

    def glyph(self, outline: str) -> str:
        """The id of a letter's outline."""
        return self._glyphs.setdefault(outline, f"glyph{len(self._glyphs)}")

    def prefix(self) -> str:
        """What the ids of the next figure begin with."""
        self._figures += 1
        return f"fig{self._figures}-"

    def css(self, dark: bool) -> str:
        """Declarations of all colours for one theme."""
        return "".join(f"{name}:{pair[dark]};" for pair, name in self._colours.items())

    def defs(self) -> str:
        """The outlines, in an SVG that shows nothing."""
        paths = "".join(f'<path id="{name}" {d}/>' for d, name in self._glyphs.items())
        return (
            '<svg width="0" height="0" style="position:absolute" aria-hidden="true">'
            f"<defs>{paths}</defs></svg>"
        )


def inline(light: str, dark: str, label: str, shared: Shared) -> str:
    """One <svg role="img"> for both themes; "" where the two differ in more than colours.

    light, dark: the SVG texts; label: escaped text that stands for the figure.
    """
    box = re.search(r'viewBox="([^"]+)"', light)
    prefix = shared.prefix()
    bodies = [_body(prefix, svg, shared) for svg in (light, dark)]
    first, second = (_COLOUR.split(body) for body in bodies)
    if first != second or box is None:
        return ""
    pairs = zip(*(_COLOUR.findall(body) for body in bodies), strict=True)
    text = _joined(first, [shared.colour(a.lower(), b.lower()) for a, b in pairs])
    return f'<svg class="figure" role="img" aria-label="{label}" viewBox="{box[1]}">{text}</svg>'


def _body(prefix: str, svg: str, shared: Shared) -> str:
    """What stands inside <svg>, with ids that are the page's own and coordinates to 0.01 pt."""
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    for pattern in _LEFT_OUT:
        inner = pattern.sub("", inner)
    letters = {name: shared.glyph(outline) for name, outline in _GLYPH.findall(inner)}
    inner = _GLYPH.sub("", inner)
    inner = _PATH.sub(lambda m: 'd="' + _SPACES.sub(_kept, _DIGITS.sub(r"\1", m[0][3:])), inner)
    used = dict.fromkeys(_USED.findall(inner))
    names = {old: letters.get(old) or f"{prefix}{i}" for i, old in enumerate(used)}
    inner = _ID.sub(lambda m: f'id="{names[m[1]]}"' if m[1] in names else "", inner)
    inner = re.sub(r'xlink:href="#([^"]+)"', lambda m: f'href="#{names[m[1]]}"', inner)
    inner = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{names[m[1]]})", inner)
    inner = inner.replace("xlink:href=", "href=").replace(" >", ">").replace("<g />", "")
    inner = _MOVED.sub(r'x="\1"', inner)
    return re.sub(r">\s+<", "><", inner).replace("<defs></defs>", "").strip()


def _kept(found: re.Match[str]) -> str:
    """A letter of a path without the blanks around it; blanks between numbers as one."""
    return found[1] or " "


def _joined(parts: list[str], between: Iterable[str]) -> str:
    out = [parts[0]]
    for colour, part in zip(between, parts[1:], strict=True):
        out += [colour, part]
    return "".join(out)
