r"""One way of writing an answer: what a reader would not tell apart is written the same."""

from __future__ import annotations

import re

_LETTERS = {
    "−": "-", "–": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": "/",
    "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∪": r"\cup ", "∩": r"\cap ", "±": r"\pm ", "∓": r"\mp ", "∈": r"\in ", "∅": r"\emptyset ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "½": r"\frac{1}{2}",
    "\u00a0": " ", "\u202f": " ", "’": "'", "⁻": "^-", "²": "^2", "³": "^3", "€": "", "£": "",
}  # fmt: skip
_TRANSLATED = str.maketrans(_LETTERS)

# In order: later rules see what earlier ones wrote.
_RULES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"√\s?(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt "),
        (r"\\(?:displaystyle|textstyle|limits|hline|centering|strut|phantom\{\})(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:left|right)\s?\.", ""),
        (r"\\(?:left|right|[Bb]igg?[lrm]?)(?![A-Za-z])\s?", ""),
        (r"\\(?:mbox|textrm|textbf|textit|textnormal|textsf|mathrm|mathbf|mathit|mathsf|bf|rm|it"
         r"|operatorname|bold|boldsymbol)(?![A-Za-z])\s?(?=\{)", r"\\text"),
        (r"\\text\s?\{\s?\}", ""),
        (r"(?:,\s?)?\\text\s?\{\s?(?:and|or)\s?\}", ","),
        (r"(?<=[\d\s$})\]])(?:,\s?|\s)(?:and|or)(?=[\s$\\])", ","),
        (r"\\[lr]brace(?![A-Za-z])", lambda m: "\\{" if m.group()[1] == "l" else "\\}"),
        (r"\\[lr]angle(?![A-Za-z])", lambda m: "(" if m.group()[1] == "l" else ")"),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset"),
        (r"\\(?:leqslant|leq)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geqslant|geq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\(?:lt)(?![A-Za-z])", "<"),
        (r"\\(?:gt)(?![A-Za-z])", ">"),
        (r"\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])", ""),
        (r"\{\s?,\s?\}|,\\!|\\!,", ","),
        (r"(?<!\\)\\(?:[!,:;> ]|quad|qquad|thinspace)", " "),
        (r"\\\$|\$|(?<!\\)\\[()\[\]]", ""),
        (r"\\%|(?i:\\text\{\s?(?:percent|%)\s?\}|\bper ?cent\b)", "%"),
        (r"~", " "),
        (r"\s+", " "),
    )
]  # fmt: skip
# Unpaired surrogates have no encoding; the signs below end a string or a file for some readers.
_UNWRITABLE = re.compile("[\ud800-\udfff\0\x1a]")
_TEXT = re.compile(r"\\text\s?\{([^{}]*)\}")


def notation(text: str) -> str:
    r"""The answer with spacing, sizes, fonts, degree and dollar signs and synonyms made one.

    \dfrac becomes \frac, \left( becomes (, \leq becomes \le, \text{and} a comma, a Unicode sign
    its command; the words of \text stay. Runs of blanks become one blank.
    """
    text = _UNWRITABLE.sub("\ufffd", text).translate(_TRANSLATED).strip()
    text = text.removeprefix("**").removesuffix("**")
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    return text.lstrip(" ,;:").rstrip(" .,;:")


def without_text(text: str) -> str:
    r"""The answer with \text{...} replaced by what it says."""
    return _TEXT.sub(r"\1", text)


def squeezed(text: str) -> str:
    r"""Equal for two answers that differ in blanks, in braces around one sign, or in \text only."""
    text = re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", "\\1\0", without_text(text))
    text = re.sub(r"(?<!\d) | (?!\d)", "", text)
    return re.sub(r"\{([A-Za-z0-9])\}", r"\1", text).replace("\0", " ")
