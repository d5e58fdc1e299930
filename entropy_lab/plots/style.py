"""One look for all figures: colour-blind safe colours, paper widths, embedded fonts."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.transforms import Bbox

Theme = Literal["light", "dark"]

COLUMN = 3.35  # inches, one column of a two-column paper
PAGE = 6.95  # inches, both columns
# Okabe and Ito's colours, which stay apart under every common colour blindness.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#A6761D"
)  # fmt: skip
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 1, 1, 1, 1, 1)))
# A method keeps its colour and dash in every figure: the n-th one here has the n-th colour, and a
# new dash begins after each round of colours. New methods are added at the end. Two that share a
# colour differ in the dash, and all differ in one of them in print without colour.
METHODS = (
    "grpo", "steer", "clip_higher", "clip_cov", "kl_cov", "entropy_bonus", "dr_grpo", "rloo",
    "adaptive_entropy", "entropy_advantage", "fork_tokens", "w_reinforce", "opo", "ce_gppo",
    "cispo", "unlikeliness",
    "clip_lower", "qae", "entropy_disc_batch", "entropy_disc_vocab", "stare", "entropy_pi",
    "entrocraft", "pos_adv_reweight",
    "repo_r", "erc", "bapo", "dppo_tv", "dppo_kl", "gspo", "influence_steer", "entropy_target",
    "quadrant",
)  # fmt: skip
MOST_RUNS = 4  # runs that a figure of single runs shows
LOWERS, RAISES = "#0072B2", "#D55E00"  # entropy falls, entropy rises
_INK = {"light": ("#22262b", "#6b7280", "#ffffff"), "dark": ("#e6e8eb", "#9aa3ad", "#16191d")}
_DEEP = {
    "light": ["#ffffff", "#cfe3f2", "#7db6dc", "#2a7bb5", "#0b4a7a", "#062a47"],
    "dark": ["#16191d", "#12304a", "#155a8a", "#2f8fc7", "#8cc8ea", "#f2f9fd"],
}


@dataclass(frozen=True)
class Drawing:
    """A figure and the sentence that says what it shows, with n and the unit of resampling."""

    figure: Figure
    caption: str


@contextmanager
def theme(name: Theme = "light") -> Iterator[None]:
    """matplotlib settings of one theme, undone afterwards."""
    ink, faint, paper = _INK[name]
    settings: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["Arial", "Liberation Sans", "DejaVu Sans"],
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.facecolor": paper,
        "figure.facecolor": paper,
        "savefig.facecolor": paper,
        "text.color": ink,
        "xtick.color": faint,
        "ytick.color": faint,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "grid.color": faint,
        "grid.alpha": 0.18,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.5,
        "legend.frameon": False,
        "legend.fontsize": 7.5,
        "pdf.fonttype": 42,  # TrueType inside the PDF: text stays text, as publishers ask
        "ps.fonttype": 42,
        "svg.hashsalt": "entropy-lab",  # equal tables give equal files
        "mathtext.default": "regular",
        "figure.constrained_layout.use": True,
    }
    with mpl.rc_context(settings):
        yield


def columns_for(panels: int, most: int = 4) -> int:
    """Columns that leave the fewest gaps in a grid of panels; the more columns the better."""
    widths = range(min(3, max(1, panels)), min(most, max(1, panels)) + 1)
    return min(widths, key=lambda c: (-panels % c, -c))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that no window system knows about, so drawing needs no display."""
    return Figure(figsize=(width, height))


def with_legend(width: float, height: float, rows: int) -> tuple[Figure, SubFigure | Figure, Any]:
    """(figure, where the panels go, where the legend goes) with `rows` lines for a legend below.

    Not a legend "outside" of the figure, which comes to lie over the caption. Without rows the
    panels have the whole figure and there is no place for a legend (None).
    """
    if rows == 0:
        figure = new_figure(width, height)
        return figure, figure, None
    figure = new_figure(width, height + 0.2 * rows)
    heights = [height, 0.2 * rows]
    top, bottom = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    return figure, top, bottom


def add_caption(drawing: Drawing) -> Bbox:
    """Write the caption below the figure's edge; returns the box in inches that holds both."""
    figure = drawing.figure
    width, height = figure.get_size_inches()
    text = figure.text(
        0.01, -0.06 / height, drawing.caption,
        va="top", fontsize=6.5, linespacing=1.3, color=faint(),
    )  # fmt: skip
    # Fonts differ in width, so the room for a line is measured; a line may be wider than average.
    whole = text.get_window_extent().width / figure.dpi
    lines = textwrap.wrap(drawing.caption, int(0.93 * width * len(drawing.caption) / whole))
    text.set_text("\n".join(lines))
    below = 0.12 + 0.125 * len(lines)
    return Bbox([[0, -below], [width, height]])


def faint() -> str:
    """Colour of secondary lines and text in the current theme."""
    return mpl.rcParams["axes.edgecolor"]


def ink() -> str:
    """Colour of text in the current theme."""
    return mpl.rcParams["text.color"]


def paper() -> str:
    """Colour of the background in the current theme."""
    return mpl.rcParams["figure.facecolor"]


def wrapped(label: str) -> str:
    """A method's label with each of its settings on a line of its own."""
    return label.replace(" ", "\n")


def lines_of(labels: Iterable[str]) -> int:
    """Lines of the longest of these labels once wrapped."""
    return max(wrapped(label).count("\n") + 1 for label in labels)


def diverging_colours() -> Colormap:
    """From what lowers entropy over the paper to what raises it; both ends are as dark."""
    ends = [colour(LOWERS), mpl.rcParams["figure.facecolor"], colour(RAISES)]
    return LinearSegmentedColormap.from_list("diverging", ends)


def density_colours() -> Colormap:
    """From the paper of the current theme to its strongest blue."""
    return LinearSegmentedColormap.from_list("density", _DEEP["dark" if _is_dark() else "light"])


def colour(name: str) -> str | tuple[float, float, float]:
    """The same hue in both themes, lighter on dark paper."""
    if not _is_dark():
        return name
    red, green, blue = to_rgb(name)
    return 1 - 0.7 * (1 - red), 1 - 0.7 * (1 - green), 1 - 0.7 * (1 - blue)


def _is_dark() -> bool:
    return mpl.rcParams["figure.facecolor"] == _INK["dark"][2]


def method_of(label: str) -> str:
    """The method's name in a label: "steer lambda_min=0.5" and "steer:lambda_min=0.5" are steer."""
    return label.partition(" ")[0].partition(":")[0]


def short_label(label: str, most: int = 26) -> str:
    """A label that fits beside a row; what is cut off ends in an ellipsis."""
    return label if len(label) <= most else label[: most - 1] + "…"


def method_style(method: str) -> dict[str, Any]:
    """Line colour and dash of a method, the same in every figure; unknown names get one too.

    A label with settings ("steer lambda_min=0.5") has the colour of its method and a dash of its
    own.
    """
    name = method_of(method)
    settings = method[len(name) + 1 :]
    known = name in METHODS
    place = METHODS.index(name) if known else zlib.crc32(name.encode())
    dash = place // len(PALETTE) + zlib.crc32(settings.encode())
    return {
        "color": colour(PALETTE[place % len(PALETTE)]),
        "linestyle": DASHES[dash % len(DASHES)],
    }


def shown_runs(data: pd.DataFrame) -> list[str]:
    """The first MOST_RUNS runs of a table, in order."""
    return [str(run) for run in dict.fromkeys(data["run"])][:MOST_RUNS]


def left_out(data: pd.DataFrame) -> str:
    """A sentence for the caption where `shown_runs` leaves runs out."""
    runs = data["run"].nunique()
    return f" The first {MOST_RUNS} of {runs} runs." if runs > MOST_RUNS else ""


def floor_text(floor: float) -> str:
    """A sentence for the caption on the noise floor of dH, nats."""
    if not np.isfinite(floor):
        return " No noise floor was measured."
    return f" Noise floor of a dH: {floor:.2g} nats."


def token_text(text: str, token: int, most: int = 12) -> str:
    """A token for a label: blanks and line ends visible, "#id" where its text is not known.

    Whatever cannot be drawn (controls, marks of direction, lone surrogates, NUL) is escaped, and
    a dollar sign starts no formula.
    """
    if not text:
        return f"#{token}"
    seen = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    safe = "".join(seen.get(c) or (c if _drawable(c) else f"U+{ord(c):04X}") for c in text[:most])
    safe += "…" if len(text) > most else ""
    return safe.replace("$", r"\$")


def _drawable(c: str) -> bool:
    """Latin, Greek and Cyrillic letters and common signs: what every font here has."""
    return c.isprintable() and (ord(c) < 0x500 or c in "–—‘’“”…€→≤≥≠∞√π")


def point_marker(values: pd.Series) -> dict[str, Any]:
    """A marker for a line of so few points that it would not be seen."""
    return {"marker": "o", "markersize": 3} if values.notna().sum() < 3 else {}


def power_of_ten(largest: float) -> tuple[float, str]:
    """(scale, text): divide by the scale and write the text, "10⁻³ nats", after the label."""
    if not (np.isfinite(largest) and largest > 0):
        return 1.0, "nats"
    power = int(np.floor(np.log10(largest)))
    if -2 < power < 3:
        return 1.0, "nats"
    return 10.0**power, f"$10^{{{power}}}$ nats"


def grid(axes: Axes, axis: Literal["x", "y", "both"] = "y") -> None:
    """Faint grid lines behind the data."""
    axes.grid(True, axis=axis)


def mark(under_floor: float) -> str:
    """ " †" after the name of rows most of which lie under two floors, so their median does."""
    return " †" if under_floor > 0.5 else ""


def number(value: float, digits: int = 2) -> str:
    """A number for a label: fixed digits, a real minus sign, an en dash where it is missing."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def significant(value: float) -> str:
    """A number for a label with three significant digits, large ones as a power of ten."""
    if not np.isfinite(value):
        return "–"
    digits, _, power = f"{value:.3g}".replace("-", "−").partition("e")
    return rf"{digits}$\times 10^{{{int(power.replace('−', '-'))}}}$" if power else digits
