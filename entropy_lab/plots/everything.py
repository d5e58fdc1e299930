"""Every figure in one go: what was drawn, what could not be and why, and a list of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from entropy_lab import analysis
from entropy_lab.analysis.store import read_tables
from entropy_lab.errors import RunError
from entropy_lab.plots import PLOTS, draw

INDEX = "index.md"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """paths: the files of an item; why: the sentence that explains a missing one, else ""."""

    name: str
    paths: list[Path]
    why: str = ""


def draw_all(
    folders: Sequence[Path], out: Path, names: Sequence[str], say: Say = lambda _: None
) -> list[Outcome]:
    """Draw every name, tell `say` after each, and write OUT/index.md.

    RunError where nothing at all could be drawn: the first reason.
    """
    done: list[Outcome] = []
    started = time.monotonic()
    for i, name in enumerate(names, start=1):
        try:
            one = Outcome(name, draw(name, folders, out))
        except RunError as error:
            one = Outcome(name, [], str(error))
        done.append(one)
        files = ", ".join(p.name for p in one.paths)
        spent = time.monotonic() - started
        say(f"[{i}/{len(names)}, {spent:.0f} s] {_title(name)}: {files or f'skipped, {one.why}'}")
    if not any(one.paths for one in done):
        raise RunError(done[0].why)
    try:
        (out / INDEX).write_text(index(done), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {INDEX} to {out}: {error.strerror or error}") from error
    return done


def index(done: Sequence[Outcome]) -> str:
    """A Markdown list: item, what it shows, its files or why there are none, tables read."""
    lines = ["# Figures and tables", "", "| item | what it shows | files | tables read |",
             "|---|---|---|---|"]  # fmt: skip
    for one in done:
        plot = PLOTS[one.name]
        files = ", ".join(f"[{p.suffix[1:]}]({p.name})" for p in one.paths)
        missing = one.why.replace("|", "\\|")
        lines.append(
            f"| {_title(one.name)} | {plot.title} | {files or missing} | {', '.join(plot.needs)} |"
        )
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    items = ", ".join(PLOTS[name].items)
    return f"{name} ({items})" if items else name


def prepared(folders: Sequence[Path], out: Path, say: Say = lambda _: None) -> list[Path]:
    """Folders of tables for what was given; runs that lack theirs are analyzed first.

    One run: its analysis. Several: their comparison, which is looked for beside them and else made
    in OUT/tables. The runs themselves follow, for the tables of `audit`.
    """
    runs = [f for f in folders if (f / "run.json").exists()]
    if not runs:
        return list(folders)
    others = [f for f in folders if f not in runs]
    if len(runs) == 1:
        if not (runs[0] / "analysis" / "summary.parquet").exists():
            say(f"analyzing {runs[0]}")
            analysis.analyze(runs)
        return list(folders)
    beside = runs[0].resolve().parent / "comparison"
    if not _compares(beside, runs):
        beside = out / "tables"
        say(f"analyzing {len(runs)} runs together: {beside}")
        analysis.analyze(runs, beside)
    audited = [f for f in runs if (f / "analysis" / "summary.parquet").exists()]
    return [beside, *others, *audited]


def _compares(folder: Path, runs: Sequence[Path]) -> bool:
    """Whether the folder has the comparison of exactly these runs."""
    if not (folder / "summary.parquet").exists():
        return False
    try:
        paths = read_tables([folder], ["summary"])["summary"]["path"]
    except RunError:
        return False
    return {Path(p).resolve() for p in paths} == {r.resolve() for r in runs}
