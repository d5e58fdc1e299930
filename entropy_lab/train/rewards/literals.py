r"""Answers that are written numbers: 1{,}234, \frac{1}{2}, 1\frac{4}{5}, 6.02e23, 50\%, 4210_5."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_DIGITS = r"\d+|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+"
_DECIMAL = rf"(?:(?:{_DIGITS})(?:\.\d*)?|\.\d+)"
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline ?\{? ?(\d+) ?\}?")
_SCIENTIFIC = re.compile(
    rf"(?:({_DECIMAL}) ?(?:[eE]|(?:\\times|\\cdot|\*|x) ?10 ?(?:\^|\*\*)) ?|10 ?\^ ?)"
    r"\{? ?([+-]? ?\d+) ?\}?"
)
_SIMPLE = re.compile(_DECIMAL)
_OVER = re.compile(rf"({_DECIMAL}) ?/ ?({_DECIMAL})")
_FRACTION = re.compile(
    rf"\\frac ?(?:(\d) ?(\d)|\{{ ?(-? ?{_DECIMAL}) ?\}} ?(?:\{{ ?(-? ?{_DECIMAL}) ?\}}|(\d))"
    rf"|(\d) ?\{{ ?(-? ?{_DECIMAL}) ?\}})"
)
_MIXED = re.compile(r"(\d+) ?(\\frac.+)|(\d+)(?: | ?\+ ?)(\d+ ?/ ?\d+)")
# Where a unit may begin, what it is made of, and its short words; any word of four letters is one.
_UNIT_START = re.compile(r" ?(?=\\text)| (?=[A-Za-z])|(?<=[\d}])(?=[A-Za-z])")
_UNIT_PART = re.compile(
    r"\\text ?\{[^{}]*\}|([A-Za-z]+)\.?|\\cdot|\^ ?(?:-?\d|\{ ?-?\d+ ?\})|[ /*.\-]"
)
_SHORT_UNITS = frozenset(
    "cm mm km dm nm um ft in mi yd kg mg lb lbs oz gal hr hrs min sec ms mph kph kmh rpm deg rad "
    "sq cu pts eV keV MeV GeV Hz kHz MHz GHz Pa kPa atm mol kJ kW MW mL ml pc kpc Mpc AU ly yr yrs "
    "erg dyn gm cc USD per of the cents ways".split()
)
_LETTER_UNITS = frozenset("mgshLlNJWVAKCFT")  # only after a blank, or 3m would be 3
_BASE = re.compile(r"([0-9A-F]+)_ ?\{? ?(?:\\text ?\{ ?)?([0-9]+) ?\}{0,2}")
_LARGEST_EXPONENT = 400  # bounds the size of the fractions; a float ends at 308


@dataclass(frozen=True)
class Number:
    """value: exactly as written; decimal: a decimal point or exponent stands in it.

    percent: as a multiple of 1/100; grouped: commas or blanks part its digits in threes.
    """

    value: Fraction
    decimal: bool = False
    percent: bool = False
    grouped: bool = False


def number(text: str) -> Number | None:
    """The number that an answer in `notation` writes out, with or without a unit; else None."""
    text, sign = text.strip(), 1
    if match := re.match(r"([+-]) ?(?=[\d.\\])", text):
        sign, text = (-1 if match.group(1) == "-" else 1), text[match.end() :]
    whole = _unsigned(text)
    if whole is None and text and (text[0] in ".\\" or text[0].isdigit()):
        whole = _before_unit(text)
    if whole is None:
        return None
    return Number(sign * whole.value, whole.decimal, whole.percent, whole.grouped)


def _before_unit(text: str) -> Number | None:
    for match in _UNIT_START.finditer(text):
        found = _unsigned(text[: match.start()])
        if found is not None and _is_unit(text, match.start()):
            return found
    return None


def _is_unit(text: str, start: int) -> bool:
    """Whether text[start:] is made of words that name units, their powers and quotients."""
    at, glued = start, text[start] != " "
    while at < len(text):
        match = _UNIT_PART.match(text, at)
        if match is None:
            return False
        word = match.group(1) or "unit"
        letter = len(word) == 1 and word in _LETTER_UNITS and not (glued and at == start)
        if not (len(word) >= 4 or word in _SHORT_UNITS or letter):
            return False
        at = match.end()
    return True


def _unsigned(text: str) -> Number | None:
    percent = text.endswith("%")
    text = text[:-1].rstrip() if percent else text
    value = _value(text)
    if value is None:
        return None
    decimal = "." in text or bool(_SCIENTIFIC.fullmatch(text)) and "\\overline" not in text
    grouped = bool(re.search(r"\d[ ,]\d{3}", text))
    return Number(value, decimal and "\\overline" not in text, percent, grouped)


def _value(text: str) -> Fraction | None:
    if _SIMPLE.fullmatch(text):
        return _plain(text)
    if match := _SCIENTIFIC.fullmatch(text):
        exponent = int(match.group(2).replace(" ", ""))
        if abs(exponent) > _LARGEST_EXPONENT:
            return None
        return _plain(match.group(1) or "1") * Fraction(10) ** exponent
    if match := _REPEATING.fullmatch(text):
        whole, fixed, again = match.groups()
        nines = (10 ** len(again) - 1) * 10 ** len(fixed)
        return (
            int(whole or 0)
            + Fraction(int(fixed or 0), 10 ** len(fixed))
            + (Fraction(int(again), nines))
        )
    if match := _MIXED.fullmatch(text):
        part = _value(match.group(2) or match.group(4))
        whole = Fraction(match.group(1) or match.group(3))
        return None if part is None or not 0 <= part < 1 else whole + part
    match = _OVER.fullmatch(text) or _FRACTION.fullmatch(text)
    if match is None:
        return None
    above, below = (_plain(part) for part in match.groups() if part is not None)
    return above / below if below else None


def _plain(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", "").rstrip(".") or "0")


def same_number(gold: Number, given: Number) -> bool:
    """Whether two written numbers are the same one.

    Without a decimal: exactly equal. Else: |gold - given| <= 5e-7, as math-verify rounds to six
    decimals, and <= 5e-5 |gold|, without which all small numbers would be one. A percentage p
    stands for p as well as for p / 100.
    """
    inexact = gold.decimal or given.decimal
    golds, givens = ({n.value, n.value / 100} if n.percent else {n.value} for n in (gold, given))
    if gold.percent and given.percent:
        golds, givens = {gold.value}, {given.value}
    return any(close(a, b) if inexact else a == b for a in golds for b in givens)


def close(gold: Fraction | float, given: Fraction | float) -> bool:
    """|gold - given| <= min(5e-7, 5e-5 |gold|)."""
    return abs(gold - given) <= min(Fraction(5, 10**7), Fraction(5, 10**5) * abs(gold))


def based(text: str) -> tuple[str, str | None] | None:
    """(digits, base) of an answer such as 4210_{5}; (digits, None) of bare digits; else None."""
    if match := _BASE.fullmatch(text):
        return match.group(1).lstrip("0"), match.group(2)
    return (text.lstrip("0"), None) if re.fullmatch("[0-9A-F]+", text) else None
