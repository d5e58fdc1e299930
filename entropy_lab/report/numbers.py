"""How the report writes numbers and their intervals."""

from __future__ import annotations

import math

from entropy_lab.analysis.tables import Row
from entropy_lab.report.html import Raw

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def band(row: Row, name: str = "pcc") -> Raw:
    """A correlation of a row with its interval, where it has one."""
    low, high = fixed(row[f"{name}_lo"]), fixed(row[f"{name}_hi"])
    known = math.isfinite(row[f"{name}_lo"])
    return Raw(fixed(row[name]) + (f" <small>[{low}, {high}]</small>" if known else ""))


def percent(row: Row, name: str, digits: int = 0) -> Raw:
    """A share and its interval, as far as they are known, in per cent."""
    if not math.isfinite(row[name]):
        return Raw("–")
    low, high = (100 * row[f"{name}_{end}"] for end in ("lo", "hi"))
    known = math.isfinite(low)
    band = f" <small>[{low:.{digits}f}, {high:.{digits}f}]</small>" if known else ""
    return Raw(f"{row[name]:.{digits}%}{band}".replace("-", "−"))


def span(low: float, high: float) -> str:
    """An interval with three significant digits, nothing where it is unknown."""
    return f"[{short(low)}, {short(high)}]" if math.isfinite(low) else ""


def fixed(value: float) -> str:
    """Two digits after the point, a real minus sign, an en dash where the number is missing."""
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "–"


def short(value: float) -> str:
    """Three significant digits, large and small ones as a power of ten."""
    if not math.isfinite(value):
        return "–"
    digits, _, power = f"{value:.3g}".partition("e")
    raised = f"×10{str(int(power)).translate(_RAISED)}" if power else ""
    return digits.replace("-", "−") + raised
