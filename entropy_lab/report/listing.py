"""What `entropy-lab list` prints."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import MISSING, fields
from typing import Any


def listing(what: str) -> list[str]:
    """The entries of a registry (methods, predictors, tasks, figures), a line or a block each."""
    entries = _entries(what)
    width = max(len(name) for name in entries)
    lines = []
    for name, thing in entries.items():
        if what == "methods":
            lines += _method_block(name, thing, width + 2)
        else:
            lines.append(f"{name:<{width}}  {_first_line(thing)}")
    return lines


def _entries(what: str) -> dict[str, object]:
    if what == "methods":
        from entropy_lab.interventions import INTERVENTIONS

        return dict(INTERVENTIONS)
    if what == "predictors":
        from entropy_lab.predictors import PREDICTORS

        return dict(PREDICTORS)
    if what == "tasks":
        from entropy_lab.train.tasks import TASKS

        return dict(TASKS)
    from entropy_lab.plots import PLOTS

    return {
        name: plot.title + f" ({', '.join(plot.items)})" * bool(plot.items)
        for name, plot in PLOTS.items()
    }


def _method_block(name: str, method: Any, indent: int) -> list[str]:
    """What a method does, its source, its own or changed defaults, and what is not confirmed."""
    from entropy_lab.interventions import Clipped, Method

    # A base class that is no method of its own, like the mapping of STEER, counts as the method's.
    base = next(c for c in method.__mro__[1:] if c in (Method, Clipped) or "name" in vars(c))
    inherited = {f.name: f.default for f in fields(base)}
    own = [
        f"{f.name}={'(set it)' if f.default is MISSING else f.default}"
        for f in fields(method)
        if f.name not in inherited or f.default != inherited[f.name]
    ]
    origin = f"those of {base.name}, " if "name" in vars(base) else ""
    parts = [_first_line(method), method.source, f"defaults: {origin}{' '.join(own)}"]
    parts += [f"unconfirmed: {method.unconfirmed}"] if method.unconfirmed else []
    lines = [x for part in parts for x in textwrap.wrap(part, 100 - indent, break_on_hyphens=False)]
    return [f"{'' if i else name:<{indent}}{line}" for i, line in enumerate(lines)]


def _first_line(thing: object) -> str:
    text = thing if isinstance(thing, str) else inspect.getdoc(thing) or ""
    return text.partition("\n\n")[0].replace("\n", " ")
