"""`entropy-lab audit`: what would another method have done to the tokens of this log?

A method is known by its gradient at two tensors: TokenBatch and TokenStats are rebuilt from the
token rows, logp and entropy made leaves, the method run, and c = -dL/dlogp, e = -dL/dentropy read
by autograd. Everything else follows from c and e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from entropy_lab.analysis.audit.candidate import Candidate
from entropy_lab.analysis.audit.log import Log
from entropy_lab.analysis.audit.profile import Profile
from entropy_lab.analysis.audit.result import tables
from entropy_lab.analysis.audit.runner import RUN, Runner
from entropy_lab.analysis.audit.spec import candidate_of
from entropy_lab.analysis.store import write_tables
from entropy_lab.errors import ConfigError
from entropy_lab.record import open_run

__all__ = ["Audit", "audit", "candidate_of"]


@dataclass(frozen=True)
class Audit:
    """What `audit` found and wrote: `tables` lie in `out` as <name>.parquet."""

    run: str
    out: Path
    tables: dict[str, pd.DataFrame]

    def to_json(self) -> dict[str, Any]:
        """The object of `audit --json`: the tables as lists of rows; NaN becomes None."""
        return {"run": self.run} | {name: _rows(data) for name, data in self.tables.items()}


def audit(
    run_dir: Path | str,
    methods: Sequence[Any] = (),
    *,
    reference: Any = "grpo",
    out: Path | str | None = None,
) -> Audit:
    """Run methods on the logged tokens of a run and compare them; write RUN/analysis/audit*.

    methods: texts as `--method` takes them, methods, their classes, or loss functions; without
    any, the run's own method. reference: what every method is compared with. A method with its
    own `advantages` recomputes them from the rewards, every other one takes those of the log.
    Steps are read one rollout at a time. Raises ConfigError for a method that cannot be read or
    has a bug, naming it; RunError for a directory that is no run, has no token rows, or lacks what
    a method reads.
    """
    log = Log(open_run(run_dir))
    methods = methods or [_own(log)]
    found: list[Candidate] = [candidate_of(m) for m in methods]
    same = [c for c, m in zip(found, methods, strict=False) if m is reference or m == reference]
    base = same[0] if same else candidate_of(reference)
    candidates = found if same else [*found, base]
    _check_labels([c.label for c in candidates])
    done = Runner(log, candidates, base.label, Profile.over(len(log.run.steps_probed)))
    done.go()
    result = tables(done)
    target = Path(out) if out is not None else log.run.path / "analysis"
    write_tables(target, result)
    return Audit(log.name, target, result)


def _own(log: Log) -> str:
    """The run's own method as `--method` would name it."""
    if log.own is None:
        raise ConfigError(
            f"{log.run.path} does not say which method made it: name what to audit with --method"
        )
    chosen = [
        f"{f.name}={getattr(log.own, f.name)}".replace("=True", "=true").replace("=False", "=false")
        for f in fields(log.own)
        if getattr(log.own, f.name) != f.default
    ]
    return ":".join([log.own_name, *([",".join(chosen)] if chosen else [])])


def _check_labels(labels: list[str]) -> None:
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise ConfigError(f"method {label} is named twice: leave one out")
        if label == RUN:
            raise ConfigError(f"{RUN!r} names the recorded gradient: rename the method")


def _rows(data: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): _plain(v) for k, v in row.items()} for row in data.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
