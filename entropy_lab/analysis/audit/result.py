"""From the sums of a pass to the tables of the audit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.audit.candidate import Candidate
from entropy_lab.analysis.audit.collapse import Collapse
from entropy_lab.analysis.audit.profile import FEW
from entropy_lab.analysis.audit.runner import RUN, Runner, stateful
from entropy_lab.analysis.audit.sums import NAN, NOTHING, named, ratio
from entropy_lab.analysis.audit.view import AXES
from entropy_lab.analysis.audit_tables import FORMS, INERT, audit_frame
from entropy_lab.analysis.bootstrap import unit
from entropy_lab.analysis.statistics import pearson

Array = NDArray[np.float64]
Row = dict[str, Any]


def tables(done: Runner) -> dict[str, pd.DataFrame]:
    """The four tables of a finished pass, with the run's name and the unit of resampling."""
    found = {
        "audit": audit_rows(done),
        "audit_touched": touched_rows(done),
        "audit_agreement": agreement_rows(done),
        "audit_scope": scope_rows(done),
    }
    said = {"run": done.log.name, "unit": unit(done.ledger.steps, done.log.samples is not None)}
    return {name: audit_frame(name, [said | row for row in rows]) for name, rows in found.items()}


def labels(done: Runner) -> list[str]:
    """The recorded gradient, then the methods as they were named."""
    return ([RUN] if done.recorded else []) + [c.label for c in done.candidates]


def audit_rows(done: Runner) -> list[Row]:
    """One row per method."""
    general = general_notes(done)
    rows = []
    known = {c.label: c for c in done.candidates}
    for label in labels(done):
        candidate = known.get(label) or Candidate(RUN, "run", _own_settings(done))
        own = label == RUN or done.is_own(candidate)
        notes = general if label == RUN or not done.recorded else []
        notes = [*notes, *candidate.notes, *_own_notes(done, candidate)]
        rows.append(
            {
                "method": label,
                "kind": candidate.kind,
                "settings": json.dumps(candidate.settings, default=str),
                "reference": done.reference,
                "n": done.ledger.rows,
                "steps": done.ledger.steps,
                "complete": not done.incomplete,
                "own": own,
                **_distances(done, label),
                **named("touched", done.ledger.pooled(("touched", label), _quotient)),
                **_weight(done, label),
                **{
                    key: value
                    for name, number in done.profile.shares(label, done.ledger).items()
                    for key, value in named(name, number).items()
                },
                **_forms(done, label),
                **done.collapse.get(label, Collapse()).numbers(),
                "notes": "\n".join(dict.fromkeys(notes)),
            }
        )
    return rows


def _own_settings(done: Runner) -> dict[str, Any]:
    said = done.log.run.info.get("method")
    return said if isinstance(said, dict) else {"name": done.log.own_name or "unknown"}


def _distances(done: Runner, label: str) -> Row:
    ledger = done.ledger
    distance = ledger.pooled(("distance", label), _norm_quotient)
    logits = ledger.pooled(("logits", label), _norm_quotient)
    pushes = bool(ledger.by_step(("entropy", label)).sum() > 0)
    # Without moments the size of a push on the entropy is unknown, but not whether there is one.
    quiet = logits[0] < INERT or (not np.isfinite(logits[0]) and not pushes)
    row = {
        **named("distance", distance),
        "cosine": ledger.pooled(("distance", label), _cosine)[0],
        **named("distance_logits", logits),
        "entropy_push": pushes,
        "inert": bool(distance[0] < INERT and quiet),
        "distance_run": NAN,
        "distance_run_max": NAN,
        "distance_run_entropy": NAN,
    }
    if ("run", label) in ledger:
        row["distance_run"] = ledger.pooled(("run", label), _norm_quotient)[0]
        row["distance_run_max"] = _worst(ledger.by_step(("run", label)))
        row["distance_run_entropy"] = _worst(ledger.by_step(("run e", label)))
    return row


def _weight(done: Runner, label: str) -> Row:
    n, total, square = done.ledger.by_step(("weight", label)).sum(axis=0)
    mean = total / n if n else NAN
    spread = max(square / n - mean**2, 0.0) ** 0.5 if n else NAN
    return {"weight_mean": mean, "weight_sd": spread}


def _forms(done: Runner, label: str) -> Row:
    row: Row = {}
    for form in FORMS:
        key = f"dH_{form}"
        row |= named(key, done.ledger.mean(("form", form, label), _quotient))
        if not done.recorded:
            continue
        difference = done.ledger.mean(("difference", form, label), _quotient)
        row |= named(f"{key}_difference", difference)
        row[f"{key}_run"] = done.ledger.mean(("form", form, RUN), _quotient)[0]
        row[f"slope_{form}"] = done.ledger.pooled(("slope", form), _quotient)[0]
    return row


def touched_rows(done: Runner) -> list[Row]:
    """One row per method, axis and bin that has tokens."""
    rows = []
    for label in labels(done):
        for axis, names in AXES.items():
            key = ("bins", axis, label)
            sums = done.ledger.by_step(key)  # (S, bins, 2)
            total = sums.sum(axis=0)
            counts = done.rows_of[axis]
            for i, name in enumerate(names):
                if not total[i, 1]:
                    continue
                number = done.ledger.pooled(key, lambda s, i=i: _quotient(s[..., i, :]))
                rows.append(
                    {
                        "method": label,
                        "axis": axis,
                        "bin": name,
                        "n": counts[i],
                        "share": total[i, 1] / total[:, 1].sum(),
                        **named("touched", number),
                        "of_touched": float(ratio(total[i, 0], total[:, 0].sum())),
                    }
                )
    return rows


def agreement_rows(done: Runner) -> list[Row]:
    """One row per pair of methods."""
    names, rows = labels(done), []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            pcc, steps = done.ledger.median(("pair", a, b), pearson)
            # The reference touches nothing by definition.
            compared = done.reference not in (a, b)
            jaccard = done.ledger.pooled(("jaccard", a, b), _quotient) if compared else NOTHING
            numbers = named("pcc", pcc) | named("jaccard", jaccard)
            rows.append({"a": a, "b": b, "n": done.ledger.rows, "steps": steps, **numbers})
    return rows


def scope_rows(done: Runner) -> list[Row]:
    """One row per method and way to cut the step."""
    rows = []
    for (label, kind, divisor), sizes in done.parts.items():
        key = ("scope", label, kind, divisor)
        distance = done.ledger.pooled(key, _norm_quotient)
        scale = done.ledger.pooled(key, lambda s: ratio(s[..., 2], s[..., 1]))
        rows.append(
            {
                "method": label,
                "split": kind,
                "divisor": divisor,
                "responses": float(np.mean(sizes)),
                "steps": len(sizes),
                **named("distance", distance),
                "scale": scale[0],
            }
        )
    return rows


def general_notes(done: Runner) -> list[str]:
    """What a reader should know of the log itself."""
    log, total = done.log, done.ledger.steps
    notes = []
    if done.incomplete:
        notes.append(
            f"{done.incomplete} of {total} steps are logged in part: gradients are those of a loss "
            "over the logged tokens, scaled by their inclusion probability; softmax_state is left "
            "out there, batch statistics are estimates, and no reproduction is claimed"
        )
    if done.left_out:
        notes.append(f"{done.left_out} token rows cannot be scored and were left out")
    if not log.has_moments:
        notes.append(
            "m0, m1, m2 are not in the log, so nothing is predicted: record with profile 'full'"
        )
    elif not np.isfinite(done.ledger.by_step(("form", FORMS[1], done.reference))).all():
        if not done.incomplete:
            notes.append("states or learning rates are not in the log, so softmax_state is missing")
    if done.profile.rows < FEW:
        rows = done.profile.rows
        notes.append(f"only {rows} token rows with an advantage: shares of the variance are rough")
    if log.ranks > 1:
        notes.append(f"rows of {log.ranks} ranks: micro-batches are told apart by their uids")
    if not done.recorded:
        notes.append("the gradient of the run's own loss is not in the log")
    elif done.unrecorded:
        notes.append(f"{done.unrecorded} of {total} steps have no recorded gradient")
    if log.own is None:
        named_ = f"{log.own_name!r} of run.json is not a method known here" if log.own_name else (
            "run.json does not name the method that made the run")  # fmt: skip
        notes.append(f"{named_}: advantages are the logged ones")
    notes += [f"skipped {path.name}: damaged ({why})" for path, why in log.run.damaged]
    return notes


def _own_notes(done: Runner, candidate: Candidate) -> list[str]:
    """What a reader should know of one method on this log."""
    notes = []
    gaps = done.steps != list(range(len(done.steps)))
    # The run's own method remembers what the log says it did.
    if gaps and stateful(candidate) and not done.is_own(candidate):
        notes.append("its memory skips the steps that were not probed")
    source = getattr(candidate.method, "unconfirmed", "")
    if source:
        notes.append(f"unconfirmed: {source}")
    return notes


def _quotient(sums: Array) -> Array:
    """First over second of sums (..., 2+)."""
    above, below = sums[..., 0], sums[..., 1]
    return ratio(above, below)


def _norm_quotient(sums: Array) -> Array:
    """Square root of first over second; NaN where the second is 0."""
    return np.sqrt(np.maximum(_quotient(sums), 0.0))


def _worst(sums: Array) -> float:
    """Largest root of first over second of any step; 0/0 is 0, anything else over 0 infinite."""
    above, below = np.sqrt(sums[:, 0]), np.sqrt(sums[:, 1])
    without = np.where(above > 0, np.inf, above)
    return float(np.where(below > 0, ratio(above, below), without).max())


def _cosine(sums: Array) -> Array:
    """Of the sums of ("distance", label)."""
    _, base, cross, own = (sums[..., i] for i in range(4))
    return ratio(cross, np.sqrt(base * own))
