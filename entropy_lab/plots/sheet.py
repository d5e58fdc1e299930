"""A table as one prints it: numbers with their intervals as LaTeX, Markdown and CSV."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

Show = Literal["text", "count", "share", "fixed", "one", "short"]
FORMATS = ("tex", "md", "csv")
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """name: column of the data; head: above it; band: <name>_lo and <name>_hi stand beside it.

    show: text; count (1,234); share (12.3 %); fixed (two digits); one (a share in per cent without
    the sign, as papers print accuracies); short (three significant digits).
    """

    name: str
    head: str
    show: Show = "fixed"
    band: bool = False


@dataclass(frozen=True)
class Sheet:
    """data: the numbers, as they are; columns: which of them are shown, and how."""

    data: pd.DataFrame
    columns: tuple[Column, ...]
    caption: str

    def cells(self) -> list[list[str]]:
        """The shown text of every row, with a real minus and an en dash where nothing is known."""
        rows = self.data.to_dict("records")
        return [[_cell(column, row) for column in self.columns] for row in rows]

    def csv(self) -> str:
        """Every number of the shown columns in full, intervals in columns of their own."""
        names = [n for c in self.columns for n in (_ends(c.name) if c.band else (c.name,))]
        out = io.StringIO()
        self.data.reindex(columns=names).to_csv(out, index=False, lineterminator="\n")
        return out.getvalue()

    def markdown(self) -> str:
        """A pipe table and the caption below it."""
        lines = [[c.head for c in self.columns], *self.cells()]
        shown = ["| " + " | ".join(_plain(x).replace("|", "\\|") for x in r) + " |" for r in lines]
        rule = "|" + "|".join("---" if c.show == "text" else "---:" for c in self.columns) + "|"
        return "\n".join([shown[0], rule, *shown[1:], "", _plain(self.caption)]) + "\n"

    def latex(self) -> str:
        r"""A `table` for booktabs; \input it. Intervals are small; nothing else is needed."""
        sides = "".join("l" if c.show == "text" else "r" for c in self.columns)
        head = " & ".join(_tex(c.head) for c in self.columns)
        body = [" & ".join(_tex_cell(x) for x in row) + r" \\" for row in self.cells()]
        lines = [
            r"\begin{table}[t]", r"\centering\small", rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule", head + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
            rf"\caption{{{_tex(self.caption)}}}", r"\end{table}",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


def number(value: float, show: Show) -> str:
    """One number as `show` says."""
    if not math.isfinite(value):
        return MISSING
    if show == "short":
        text = f"{value:.3g}"
    else:
        text = {
            "count": f"{value:,.0f}", "share": f"{value:.1%}".replace("%", " %"),
            "one": f"{100 * value:.1f}", "fixed": f"{value:.2f}",
        }[show]  # fmt: skip
    return text.replace("-", "−")


def _cell(column: Column, row: dict[Any, Any]) -> str:
    value = row.get(column.name)
    if column.show == "text":
        return "" if value is None or value != value else str(value)
    value = float("nan") if value is None else float(value)
    text = number(value, column.show)
    if not column.band or text == MISSING:
        return text
    low, high = (float(row.get(n, float("nan"))) for n in _ends(column.name)[1:])
    if not (math.isfinite(low) and math.isfinite(high)):
        return text
    ends = [number(v, column.show).removesuffix(" %") for v in (low, high)]
    return f"{text} [{ends[0]}, {ends[1]}]"


def _ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_lo", f"{name}_hi"


def _plain(text: str) -> str:
    """One line without control characters, which would end the row."""
    return "".join(c if c.isprintable() else " " for c in text)


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "–": "--", "π": r"$\pi$", "Σ": r"$\Sigma$", "Ω": r"$\Omega$", "≥": r"$\geq$",
    "≤": r"$\leq$", "λ": r"$\lambda$", "ε": r"$\varepsilon$", "×": r"$\times$", "·": r"$\cdot$",
    "²": r"$^2$", "→": r"$\to$", "†": r"$\dagger$", "␣": r"\textvisiblespace{}",
    "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "“": "``", "”": "''",
    "⏎": r"$\hookleftarrow$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in _plain(text))


def _tex_cell(text: str) -> str:
    """The interval, at the end of a number, in small print."""
    found = re.fullmatch(r"(\S+(?: %)?) (\[.*\])", text)
    if not found:
        return _tex(text)
    return rf"{_tex(found[1])} {{\scriptsize {_tex(found[2])}}}"
