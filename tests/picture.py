"""What is wrong with a drawn figure: empty panels, numbers that are none, things that overlap."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

_NO_NUMBER = re.compile(r"\b(nan|inf|none)\b", re.IGNORECASE)
_TOUCH = 1.5  # pixels by which neighbours may meet


def panels(figure: Figure) -> list[Axes]:
    """The axes that show something or should, subfigures included."""
    return [a for a in figure.findobj(Axes) if a.axison and a.get_label() != "<colorbar>"]


def empty_panels(figure: Figure) -> list[str]:
    """Titles of panels without a finite point, bar, image or text that says why."""
    return [a.get_title(loc="left") for a in panels(figure) if not _has_data(a) and not a.texts]


def _has_data(axes: Axes) -> bool:
    points = [line for line in axes.lines if _is_seen(line, axes)]
    shapes = [p for p in axes.patches if np.isfinite(p.get_extents().bounds).all()]
    segments = [
        s for c in axes.collections if isinstance(c, LineCollection) for s in c.get_segments()
    ]
    dots = [c for c in axes.collections if isinstance(c, PathCollection)]
    return bool(points or shapes or axes.images or dots or any(len(s) for s in segments))


def _is_seen(line: Line2D, axes: Axes) -> bool:
    """A line of data, not one across the panel; a single point is seen by its marker alone."""
    xy = np.ma.filled(np.ma.asarray(line.get_xydata(), float), np.nan)
    known = int(np.isfinite(xy).all(axis=1).sum()) if len(xy) else 0
    marked = line.get_marker() not in ("None", "", None)
    return line.get_transform() == axes.transData and known >= (1 if marked else 2)


def bad_texts(figure: Figure) -> list[str]:
    """Visible texts that speak of nan, inf or None."""
    texts = [t.get_text() for t in figure.findobj(Text) if t.get_visible()]
    return [t for t in texts if _NO_NUMBER.search(t)]


def overlaps(figure: Figure) -> list[str]:
    """Panels, or tick labels of one axis, that lie over one another once laid out."""
    figure.draw_without_rendering()
    shown = panels(figure)
    boxes = [(a, a.get_tightbbox()) for a in shown]
    found = [
        f"{_name(a)} over {_name(b)}"
        for (a, one), (b, two) in combinations(boxes, 2)
        if one is not None
        and two is not None
        and _area(one, two)
        and a.bbox.bounds != b.bbox.bounds
    ]
    for axes in shown:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [t for t in axis.get_ticklabels() if t.get_visible() and t.get_text().strip()]
            inside = [t.get_window_extent() for t in labels]
            for (i, one), (j, two) in combinations(enumerate(inside), 2):
                if _area(one, two):
                    found.append(
                        f"{_name(axes)}: {labels[i].get_text()} over {labels[j].get_text()}"
                    )
    return found


def _name(axes: Axes) -> str:
    return repr(axes.get_title(loc="left") or axes.get_xlabel() or axes.get_ylabel())


def _area(one, two) -> bool:
    """Whether two boxes share more than a seam."""
    wide = min(one.x1, two.x1) - max(one.x0, two.x0)
    high = min(one.y1, two.y1) - max(one.y0, two.y0)
    return wide > _TOUCH and high > _TOUCH
