"""`entropy-lab audit --replay`: methods in, steps taken by the trainer, tables and lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING

from entropy_lab.analysis.replay import lines, pairs
from entropy_lab.analysis.store import write_tables
from entropy_lab.errors import ConfigError

if TYPE_CHECKING:
    from entropy_lab.interventions import Method


def replay_and_report(
    run_dir: Path,
    methods: Sequence[str],
    reference: str,
    out: Path | None,
    as_json: bool,
    *,
    inner: int,
    points: int,
    deep: bool,
) -> list[str]:
    """Replay `methods` and `reference` on a run, write replay*.parquet, and say what came out.

    Raises ConfigError for a method that the trainer cannot execute, and what `replay` raises.
    """
    from entropy_lab.train.replay import replay

    chosen = replayable([reference, *methods])
    told = _progress if sys.stderr.isatty() else None
    found = replay(run_dir, chosen, inner=inner, points=points, deep=deep, told=told)
    rows = found.rows.assign(run=Path(run_dir).resolve().name)
    table = pairs(rows, reference).assign(run=rows["run"].iloc[0])
    folder = out if out is not None else Path(run_dir) / "analysis"
    write_tables(folder, {"replay": rows, "replay_pairs": table})
    if as_json:
        return [json.dumps(json.loads(table.to_json(orient="records")), indent=2)]
    return [*lines(table), f"tables: {folder / 'replay*.parquet'}"]


def replayable(methods: Sequence[str]) -> dict[str, Method]:
    """The methods that `--method` texts name, by text; ConfigError for one that takes no step."""
    return {text: _method(text) for text in dict.fromkeys(_spelled_out(methods))}


def _spelled_out(methods: Sequence[str]) -> list[str]:
    """`all` stands for every method of the registry that needs no setting."""
    if "all" not in methods:
        return list(methods)
    from entropy_lab.interventions import INTERVENTIONS

    ready = [
        name
        for name, kind in INTERVENTIONS.items()
        if not any(f.default is MISSING for f in fields(kind))
    ]
    return [*ready, *(m for m in methods if m != "all")]


def _method(text: str) -> Method:
    from entropy_lab.analysis.audit.planned import Planned
    from entropy_lab.analysis.audit.spec import candidate_of
    from entropy_lab.interventions import Method

    found = candidate_of(text)
    method = found.method if isinstance(found, Planned) else None
    if not isinstance(method, Method):
        raise ConfigError(
            f"{text} cannot be replayed: the trainer takes the step, so give a method of "
            "`entropy-lab list methods` or a class on entropy_lab.interventions.Method; a loss "
            "function can be audited without --replay"
        )
    return method


def _progress(point: int, points: int, method: str) -> None:
    print(f"\rreplaying from state {point + 1}/{points}: {method:<24}", end="", file=sys.stderr)
