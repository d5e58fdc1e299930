"""`entropy-lab doctor`: is this log believable? One small function per check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from entropy_lab.analysis.doctor import files, layout, measurement, update
from entropy_lab.analysis.doctor.agreement import AGREEMENT_CHECKS
from entropy_lab.analysis.doctor.block import summarize
from entropy_lab.analysis.doctor.check import RowCheck, RunCheck, Tally
from entropy_lab.analysis.doctor.facts import Facts, blocks
from entropy_lab.analysis.doctor.finding import Diagnosis, Finding, Verdict, ranked
from entropy_lab.analysis.doctor.layout import LAYOUT_CHECKS
from entropy_lab.analysis.doctor.rescore import Checkpoint, rescore
from entropy_lab.analysis.doctor.update import UPDATE_CHECKS
from entropy_lab.analysis.doctor.values import VALUE_CHECKS
from entropy_lab.errors import RunError
from entropy_lab.record import open_run

__all__ = ["CHECKS", "Checkpoint", "Diagnosis", "Finding", "Verdict", "doctor"]

# Of the run's small tables, after the pass over token rows.
RUN_CHECKS: dict[str, RunCheck] = {
    "status": files.status,
    "damaged": files.damaged,
    "dropped_windows": files.dropped_windows,
    "events": files.events,
    "columns": files.columns,
    "ranks": files.ranks,
    "steps": files.steps,
    "token_steps": files.token_steps,
    "samples": files.samples,
    "row_counts": layout.row_counts,
    "temperature": measurement.temperature,
    "inclusion": measurement.inclusion,
    "loss_forward": measurement.loss_forward,
    "repeat": measurement.repeat,
    "floor": measurement.floor,
    "gradient_audit": measurement.gradient_audit,
    "identity": measurement.identity,
    "splits": measurement.splits,
    "fixed_chain": measurement.fixed_chain,
    "step_means": measurement.step_means,
    "advantage_sign": update.advantage_sign,
}
# Of token rows, one step at a time.
ROW_CHECKS: dict[str, RowCheck] = {
    **VALUE_CHECKS,
    **LAYOUT_CHECKS,
    **UPDATE_CHECKS,
    **AGREEMENT_CHECKS,
}
CHECKS = (*RUN_CHECKS, *ROW_CHECKS, "rescored")


def doctor(
    run_dir: Path | str, checkpoint: Checkpoint | None = None, why_not: str = ""
) -> Diagnosis:
    """Examine a run; a check that does not apply to it is listed in the finding `coverage`.

    checkpoint: a model of the run, for the check `rescored`; why_not: why there is none. Rows are
    read one step at a time. Raises RunError for a directory that is not a run or holds no
    finished step.
    """
    run = open_run(run_dir)
    facts = Facts.of(run, checkpoint.vocab if checkpoint else 0)
    tallies = _read(facts)
    found = [Finding.of(n, ROW_CHECKS[n].judge(t, facts)) for n, t in tallies.items() if t.rows]
    for name, check in RUN_CHECKS.items():
        verdict = check(facts)
        if verdict is not None:
            found.append(Finding.of(name, verdict))
    found.append(Finding.of("rescored", _rescored(facts, checkpoint, why_not)))
    order = {name: i for i, name in enumerate(CHECKS)}
    found.sort(key=lambda f: order[f.check])
    done = {f.check for f in found}
    left = [name for name in CHECKS if name not in done]
    if left:
        what = Verdict("note", f"not applicable or nothing to check: {', '.join(left)}")
        found.append(Finding.of("coverage", what))
    return Diagnosis(run.path.resolve().name, ranked(found))


def _read(facts: Facts) -> dict[str, Tally]:
    """The pass over all token rows; fills facts.per_step and facts.uids."""
    if not facts.run.token_files:
        return {}
    have = set(facts.run.columns("tokens"))
    checks = {n: c for n, c in ROW_CHECKS.items() if have.issuperset(c.needs)}
    tallies = {name: Tally() for name in checks}
    rows, uids = [], []
    for block in blocks(facts):
        rows.append(summarize(block))
        uids.append(block.uid[block.train[block.head]])
        for name, check in checks.items():
            tally = check.measure(block, facts)
            if tally is not None:
                tallies[name] += tally
    facts.per_step = pd.DataFrame(rows)
    facts.uids = np.unique(np.concatenate(uids)) if uids else facts.uids
    return tallies


def _rescored(facts: Facts, checkpoint: Checkpoint | None, why_not: str) -> Verdict:
    try:
        return rescore(facts, checkpoint, why_not)
    except RunError as error:  # a damaged part, which `damaged` reports
        return Verdict("note", f"not re-scored: {error}")
