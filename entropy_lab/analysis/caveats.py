"""What to know before trusting an analysis: the table warnings."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.analysis.belief import largest
from entropy_lab.analysis.bootstrap import MANY_STEPS
from entropy_lab.analysis.scan import Scan
from entropy_lab.analysis.strata import reversals
from entropy_lab.analysis.tables import FIRST_STEP
from entropy_lab.record import Run
from entropy_lab.record.schema import PATH_PREDICTORS

AUDIT_LIMIT = 1e-3  # above it, part of the gradient does not pass through logp and entropy


def caveats(
    run: Run,
    steps: pd.DataFrame,
    found: Scan | None,
    has_groups: bool,
    validation: pd.DataFrame,
    tokens: bool = True,
) -> list[dict]:
    """Rows of the table `warnings`, the gravest first, without the run's name.

    tokens: whether the analysis was asked to read token rows.
    """
    rows = _files(run) + _measurement(steps)
    if not tokens:
        return [*rows, _note("token rows were not read (--no-tokens): no correlations, no regions")]
    if found is None:
        return [*rows, _warning(_nothing_measured(run))]
    rows += [_warning(text) for text in reversals(validation)]
    return rows + _coverage(found, has_groups)


def _nothing_measured(run: Run) -> str:
    """Why no token row could be analyzed, and what to do about it."""
    imported = run.info.get("imported")
    if imported:
        return (
            f"a log of {imported['source']} lacks {imported['lacks']}: only curves were analyzed. "
            "Instrument the run to have dH measured; `audit` works on the logged tokens"
        )
    if run.token_files:
        return "token rows without dH: only curves were analyzed. Record them with the probe"
    return (
        "no token rows: only curves were analyzed. Record with probe.enabled = true and "
        "probe.every at most the number of steps"
    )


def _warning(text: str) -> dict:
    return {"level": "warning", "text": text}


def _note(text: str) -> dict:
    return {"level": "note", "text": text}


def _files(run: Run) -> list[dict]:
    rows = [_warning(f"skipped {path.name}: damaged ({why})") for path, why in run.damaged]
    dropped = run.info.get("dropped_windows") or 0
    if dropped:
        rows.append(
            _warning(f"{dropped} windows of token rows were dropped while training (slow disk)")
        )
    status = run.info.get("status")
    if status != "finished":
        rows.append(_note(f"the run is {status!r}: analyzed up to step {run.last_step}"))
    return rows


def _measurement(steps: pd.DataFrame) -> list[dict]:
    rows = []
    audit = largest(steps, "gradient_audit")
    if audit > AUDIT_LIMIT:
        rows.append(
            _warning(
                f"gradient audit {audit:.1e} is above {AUDIT_LIMIT:.0e}: part of the gradient "
                "does not pass through logp and entropy (auxiliary loss, full-vocabulary KL, "
                "shifted mask), so closed forms miss it"
            )
        )
    repeat = largest(steps, "repeat_max")
    if repeat > 0:
        rows.append(
            _warning(
                f"measuring twice without a step between differs by up to {repeat:.1e} nats: "
                "before and after do not run one code path"
            )
        )
    if not np.isfinite(audit):
        rows.append(_note("no gradient audit was recorded"))
    return rows + _precision(steps)


def _precision(steps: pd.DataFrame) -> list[dict]:
    """What measuring in half precision did to dH."""
    rows = []
    measured = steps["measured_in"].iloc[-1] if "measured_in" in steps else ""
    if "rounding" in steps and steps["rounding"].notna().any():
        again = steps[steps["rounding"].notna()]
        n = again["float32_rows"]
        rounding = float(np.sqrt(np.average(again["rounding"] ** 2, weights=n)))
        means = [np.average(again[c], weights=n) for c in ("dH_float32", "dH_float32_same")]
        rows.append(
            _warning(
                f"dH was measured in {measured}, as the run was trained: over {int(n.sum()):,} "
                f"tokens measured in float32 as well it is off by {rounding:.1e} nats a token "
                f"(rms); their mean dH is {means[0]:+.1e} in float32 and {means[1]:+.1e} as "
                "measured. Set probe.dtype = float32 to measure all of them so"
            )
        )
    elif str(measured).endswith("float16"):
        rows.append(
            _warning(
                f"dH was measured in {measured}: rounding is about 1e-3 nats a token. Set "
                "probe.dtype = float32, or auto for a few responses a step"
            )
        )
    return rows


def _coverage(found: Scan, has_groups: bool) -> list[dict]:
    rows = []
    used = [s for s in found.train.steps if s >= found.first]
    if found.first < FIRST_STEP:
        rows.append(
            _warning(f"no probed step >= {FIRST_STEP}: correlations are of the first steps")
        )
    if len(used) < MANY_STEPS:
        rows.append(_warning(f"only {len(used)} probed steps: intervals are rough"))
    if not has_groups:
        rows.append(
            _note("responses without samples rows: each response stands for its prompt group")
        )
    if found.dropped:
        rows.append(_note(f"{found.dropped} token rows could not be scored and were left out"))
    deep = {n: c for n, c in found.absent.items() if n in PATH_PREDICTORS}
    if deep:
        left = len(found.train.steps) - max(deep.values())
        rows.append(
            _note(
                f"path forms are of the {left} deep steps of {len(found.train.steps)} probed ones"
            )
        )
    for name, count in found.absent.items():
        if name in deep:
            continue
        where = "every step" if count == len(found.train.steps) else f"{count} steps"
        rows.append(_note(f"dH_pred_{name} is missing in {where}, which are left out for it"))
    return rows
