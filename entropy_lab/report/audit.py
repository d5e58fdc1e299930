"""What the terminal shows after an audit: one block a method, then who agrees with whom."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pandas as pd

from entropy_lab.analysis.audit_tables import FACTORS, INERT
from entropy_lab.analysis.tables import Row, records

Tables = Mapping[str, pd.DataFrame]

REPRODUCED = 1e-6  # |c - recorded c| / |recorded c| up to which a gradient counts as the recorded
_FEW = 20  # tokens below which a bin is not worth naming
_RESIZED = 0.05  # change of the size of c from which it is said
_CUT = {1: "the run's own micro-batches", 2: "half of them", 4: "quarters"}


def audit_lines(tables: Tables) -> list[str]:
    """Plain lines for the terminal."""
    rows = records(tables["audit"])
    first = rows[0]
    lines = [
        f"{first['run']}: {first['n']:,} training tokens of {first['steps']} probed steps; c is "
        f"-dL/dlogp, compared with {first['reference']}; [95 %]: {first['unit']}"
    ]
    # A method that reproduces the recorded gradient says all there is to say of it.
    twice = any(_reproduces(row) for row in rows)
    shown = [row for row in rows if not (twice and row["kind"] == "run")]
    for row in shown:
        if row["method"] != row["reference"] or row["own"]:
            lines += ["", *_block(row, tables)]
    lines += ["", *_agreement(tables["audit_agreement"], [row["method"] for row in shown])]
    lines += _scale(first)
    if first["kind"] == "run":
        lines += [f"note: {text}" for text in first["notes"].splitlines()]
    return lines


def _block(row: Row, tables: Tables) -> list[str]:
    name = row["method"]
    if row["kind"] == "run":
        maker = json.loads(row["settings"]).get("name", "its loss")
        name = f"run, the recorded gradient of {maker}"
    lines = [name + _reproduction(row)]
    if row["method"] != row["reference"]:
        lines.append(_distance(row))
        lines += [] if row["inert"] else _where(row, tables["audit_touched"])
    lines += _profile(row) + _predicted(row) + _weights(row)
    lines += _scope(row["method"], tables["audit_scope"])
    if row["kind"] != "run":
        lines += [f"note: {text}" for text in row["notes"].splitlines()]
    return [lines[0], *(f"  {line}" for line in lines[1:])]


def _off(row: Row) -> float:
    return max(row["distance_run_max"], row["distance_run_entropy"])


def _reproduces(row: Row) -> bool:
    known = row["kind"] != "run" and row["own"] and row["complete"]
    return bool(known and _off(row) <= REPRODUCED)


def _reproduction(row: Row) -> str:
    if row["kind"] == "run" or not row["own"] or not math.isfinite(row["distance_run"]):
        return ""
    if not row["complete"]:
        return ": made this run (logged in part, so its gradient cannot be reproduced)"
    if _reproduces(row):
        return f": made this run, and reproduces its recorded gradient (worst step {_off(row):.1e})"
    return (
        f": made this run, but DOES NOT reproduce its recorded gradient (worst step "
        f"{_off(row):.1e}): another version or loss made it, or the log is not whole"
    )


def _distance(row: Row) -> str:
    text = f"c differs by {_span(row, 'distance')}"
    if row["entropy_push"]:
        text += f", at the logits, with its push on the entropy, {_span(row, 'distance_logits')}"
    if row["inert"]:
        return f"inert here: {text}, below {_percent(INERT)}"
    return f"{text}, cosine {_fixed(row['cosine'])}"


def _where(row: Row, touched: pd.DataFrame) -> list[str]:
    if not row["touched"] > 0:
        return []
    bins = [r for r in records(touched, method=row["method"]) if r["n"] >= _FEW]
    best = []
    for axis in ("quadrant", "probability", "entropy"):
        here = [r for r in bins if r["axis"] == axis]
        if here:
            top = max(here, key=lambda r: r["of_touched"])
            best.append(
                f"{top['bin']} {_percent(top['of_touched'])} (of all tokens "
                f"{_percent(top['share'])})"
            )
    where = f"; most of them: {', '.join(best)}" if best else ""
    return [f"touches {_span(row, 'touched')} of the tokens{where}"]


def _profile(row: Row) -> list[str]:
    if not math.isfinite(row["explained"]):
        return ["its weight does not vary here"] if math.isfinite(row["weight_sd"]) else []
    parts = [f"{f} {_percent(row[f'alone_{f}'])}" for f in FACTORS]
    return [
        f"variance of its weight explained by {', '.join(parts)} alone; by all four "
        f"{_span(row, 'explained')}"
    ]


def _predicted(row: Row) -> list[str]:
    for form in ("softmax_state", "softmax"):
        value = row[f"dH_{form}"]
        if not math.isfinite(value):
            continue
        text = f"predicted dH a step ({form}): {_band(row, f'dH_{form}')}"
        if math.isfinite(row[f"dH_{form}_run"]) and row["kind"] != "run":
            text += (
                f"; run {_short(row[f'dH_{form}_run'])}, difference "
                f"{_band(row, f'dH_{form}_difference')}"
            )
        return [text]
    return []


def _weights(row: Row) -> list[str]:
    parts = []
    if math.isfinite(row["pinned"]):
        parts.append(f"{_percent(row['pinned'])} of the weights within 1 % of the largest")
    if not math.isnan(row["omega_peak"]):
        parts.append(
            f"max/p99 of |Omega| {row['omega_peak']:.3g}, at a token of probability "
            f"{_fixed(row['argmax_probability'])}"
        )
    return ["; ".join(parts)] if parts else []


def _scope(method: str, scope: pd.DataFrame) -> list[str]:
    rows = [r for r in records(scope, method=method) if r["distance"] > 0]
    if not rows:
        return []
    parts = []
    for r in rows:
        cut = _CUT[r["divisor"]] if r["split"] == "micro-batch" else f"{r['divisor']} ranks"
        size = f" (x {r['scale']:.2g})" if abs(r["scale"] - 1) > _RESIZED else ""
        parts.append(f"{cut} {_percent(r['distance'])}{size}")
    return [f"c changes if it sees each part alone: {', '.join(parts)}"]


def _agreement(agreement: pd.DataFrame, methods: list[str]) -> list[str]:
    rows = [r for r in records(agreement) if {r["a"], r["b"]} <= set(methods)]
    if not rows:
        return []
    width = max(len(f"{r['a']} | {r['b']}") for r in rows)
    lines = [f"{'agreement':<{width}}  correlation of c [95 %]  touched in common"]
    for r in rows:
        pair = f"{r['a']} | {r['b']}"
        band = f"[{_fixed(r['pcc_lo'])}, {_fixed(r['pcc_hi'])}]"
        common = "-" if math.isnan(r["jaccard"]) else _percent(r["jaccard"])
        lines.append(f"{pair:<{width}}  {_fixed(r['pcc']):>5} {band:<17}  {common}")
    return lines


def _scale(row: Row) -> list[str]:
    slope = row["slope_softmax_state"]
    form = "softmax_state"
    if not math.isfinite(slope):
        slope, form = row["slope_softmax"], "softmax"
    if not math.isfinite(slope):
        return []
    return [
        f"predictions are those of plain SGD: on this run the measured dH was {slope:.3g} times "
        f"what {form} says of the recorded gradient"
    ]


def _span(row: Row, name: str) -> str:
    """A share with its interval, in per cent."""
    if math.isnan(row[name]):
        return "an unknown share"
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    band = f" [{_percent(low)}, {_percent(high)}]" if math.isfinite(low) else ""
    return _percent(row[name]) + band


def _band(row: Row, name: str) -> str:
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    band = f" [{_short(low)}, {_short(high)}]" if math.isfinite(low) else ""
    return _short(row[name]) + band


def _percent(value: float) -> str:
    if math.isinf(value):
        return "infinite"
    return f"{100 * value:.0f} %" if abs(value) >= 0.1 or value == 0 else f"{100 * value:.2g} %"


def _fixed(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _short(value: float) -> str:
    return f"{value:+.2g}" if value else "0"
