"""The tables of `entropy-lab audit`: names, columns and meanings, readable without torch."""

from __future__ import annotations

import pandas as pd

FACTORS = ("clip", "advantage", "probability", "entropy")
FORMS = ("softmax", "softmax_state")  # closed forms that read a method's own gradient
INERT = 0.01  # a method nearer than this to the reference does nothing on this log

_RUN = {"run": "name of the run directory"}
_UNIT = {"unit": "what the intervals resample"}


def _banded(name: str, meaning: str) -> dict[str, str]:
    ends = {"lo": "lower end of the 95 % interval", "hi": "upper end of the 95 % interval"}
    return {name: meaning, **{f"{name}_{end}": text for end, text in ends.items()}}


def _form(name: str) -> dict[str, str]:
    what = f"mean dH of a step that `{name}` predicts, mean over steps, nats"
    return (
        _banded(f"dH_{name}", what)
        | _banded(f"dH_{name}_difference", "the same less that of the recorded gradient, paired")
        | {
            f"dH_{name}_run": "the same for the recorded gradient",
            f"slope_{name}": "least-squares factor through the origin of the measured dH on the "
            "prediction of the recorded gradient, all rows",
        }
    )


AUDIT_TABLES: dict[str, dict[str, str]] = {
    "audit": _RUN
    | {
        "method": "as it was named on the command line; `run`: the recorded gradient",
        "kind": "run, registry, intervention, verl loss or loss",
        "settings": "its parameters, JSON",
        "reference": "what it is compared with",
        "n": "training token rows",
        "steps": "probed steps",
        "complete": "every probed step is in the log with all of its tokens",
        "own": "it is the method that made the run",
        **_banded("distance", "|c - c_reference| / |c_reference|, over all steps"),
        "cosine": "cosine of c and c_reference, over all steps",
        **_banded(
            "distance_logits",
            "the same as distance for the gradients at the logits, "
            "c (e_a - pi) - e S, so that a push on the entropy counts",
        ),
        "entropy_push": "e is not 0 somewhere",
        "inert": f"distance and distance_logits are below {INERT:g}",
        "distance_run": "|c - recorded c| / |recorded c|, over all steps",
        "distance_run_max": "the same of the worst step",
        "distance_run_entropy": "the same of e, worst step; infinite where only the method "
        "pushes the entropy",
        **_banded(
            "touched",
            "share of tokens whose push differs from the reference's by more "
            f"than {INERT:.0%} of the larger of the two",
        ),
        "weight_mean": "mean weight c N / (r A) on the reference's unclipped push, tokens A != 0",
        "weight_sd": "its standard deviation, all steps",
        **{
            key: text
            for f in FACTORS
            for key, text in (
                _banded(f"alone_{f}", f"share of the weight's variance that {f} alone explains")
                | {f"only_{f}": f"share that is lost when {f} is left out of all four"}
            ).items()
        },
        **_banded("explained", "share of the weight's variance that all four factors explain"),
        **{key: text for name in FORMS for key, text in _form(name).items()},
        "pinned": "share of the tokens with A != 0 whose weight is within 1 % of the step's "
        "largest, mean over steps; NaN for a method without token weights",
        "omega_peak": "largest |Omega| over its 99 % quantile where the method takes its maximum, "
        "median",
        "argmax_probability": "probability of the token with the largest |Omega|, median",
        "argmax_rare": "share of those tokens with a probability below 0.1",
        "notes": "what to know before trusting the row, one sentence a line",
        **_UNIT,
    },
    "audit_touched": _RUN
    | {
        "method": "as in audit",
        "axis": "quadrant, probability or entropy",
        "bin": "name of the quadrant or bin",
        "n": "token rows in the bin",
        "share": "share of all tokens",
        **_banded("touched", "share of the bin's tokens that the method touches"),
        "of_touched": "share of the touched tokens that lie in the bin",
        **_UNIT,
    },
    "audit_agreement": _RUN
    | {
        "a": "method",
        "b": "method",
        "n": "token rows",
        "steps": "steps with a value",
        **_banded("pcc", "Pearson correlation of their c, median over steps"),
        **_banded(
            "jaccard",
            "touched by both over touched by either, all steps; NaN: by "
            "neither, or beside the reference",
        ),
        **_UNIT,
    },
    "audit_scope": _RUN
    | {
        "method": "as in audit",
        "split": "micro-batch: consecutive responses; rank: the step dealt to ranks in one piece "
        "each, every rank for itself",
        "divisor": "micro-batch: 1 the run's own size, 2 half, 4 a quarter; rank: how many",
        "responses": "responses of a part, mean over steps",
        "steps": "steps",
        **_banded("distance", "|c' - c| / |c|: c' if the method saw each part alone"),
        "scale": "c'.c / c.c: what remains of c but for its direction",
        **_UNIT,
    },
}


def audit_frame(name: str, rows: list[dict]) -> pd.DataFrame:
    """Rows as the table `name`, its columns in order, missing ones NaN."""
    return pd.DataFrame(rows).reindex(columns=list(AUDIT_TABLES[name]))
