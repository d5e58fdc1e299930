"""The analysis tables: their names, columns and meanings; figures and reports read only these.

Every table is one Parquet file in RUN/analysis (or --out) whose fields carry their meaning.
Entropies and their changes are in nats per token, dH > 0 means that entropy rose.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from entropy_lab.analysis.tables_items import ITEM_TABLES
from entropy_lab.analysis.tables_runs import RUN_TABLES

PREDICTOR_PREFIX = "dH_pred_"
# Bits of the token column `flags` and the sign regions, equal to those of types and stats (a
# test compares them); repeated here because reading a log must not wait for torch.
HELD_OUT = 32
NOT_SCORABLE = 128
QUADRANTS = ("pos_likely", "pos_unlikely", "neg_likely", "neg_unlikely", "zero")
FIRST_STEP = 5  # earlier steps are left out of correlations: the optimizer is still warming up
TRIM, TOP = 0.99, 0.01  # quantile of |dH|; share of the tokens that a method would pick
SCOPES = ("within_step", "pooled", "within_group")
# From the least to the most that a form knows; any other predictor follows by name.
CLOSED_FORMS = ("cov", "steer", "steer_released", "discriminant", "softmax", "softmax_state")
# One rung per simplification that is dropped; the last ones need a deep step.
PREDICTOR_ORDER = (*CLOSED_FORMS, "head", "last_block", "jvp_grad", "jvp")
# Columns dH_pred_* that are terms of a change or a second estimate of one, not predictions.
TERMS = ("second_order", "slope", "jvp_momentum", "jvp_decay")
# The rungs of the error budget from the bottom up, and what each takes in that the one below
# leaves out; the change itself is the last.
LADDER = {
    "steer_released": "the released code",
    "steer": "the theorem instead of the code",
    "softmax": "off-action terms",
    "softmax_state": "repeated states",
    "jvp_grad": "parameter sharing and preconditioning",
    "jvp": "earlier batches and decay",
    "dH": "curvature",
}
BESIDE = ("cov", "head", "last_block")  # forms beside the ladder: they add to no rung
TARGETS = ("dH", "influence", "influence_marginal")

_UNDER = "share of the rows with |dH| below two floors; NaN where no floor was measured"
_RUN = {"run": "name of the run directory"}
_BAND = {"lo": "lower end of the 95 % interval", "hi": "upper end of the 95 % interval"}


def _banded(name: str, meaning: str) -> dict[str, str]:
    return {name: meaning, f"{name}_lo": _BAND["lo"], f"{name}_hi": _BAND["hi"]}


TABLES: dict[str, dict[str, str]] = {
    **(RUN_TABLES | ITEM_TABLES),
    "summary": _RUN
    | {
        "path": "run directory",
        "method": "method of the run's configuration",
        "task": "task of the run's configuration",
        "status": "as run.json has it",
        "steps": "optimizer steps",
        "probed_steps": "steps with token rows",
        "tokens": "training token rows that can be scored, all probed steps",
        "unique_states": "different states among them",
        "entropy_first": "mean entropy of the first five steps",
        "entropy_last": "mean entropy of the last five steps",
        "reward_first": "mean reward of the first five steps",
        "reward_last": "mean reward of the last five steps",
        "dH_train": "mean over steps of dH_train",
        "dH_heldout": "mean dH_heldout of the steps of age 0, the change of the policy",
        **_banded("local_term", "mean over steps of sum dH in a response, nats per response"),
        **_banded("visitation_term", "the same because other tokens come next: other states"),
        "terms_of": "responses of both: heldout (steps of age 0) or train (their own push in it)",
        "terms_steps": "steps with both",
        "floor": "noise floor: rms of dH - dH in float64 over the rows of all floor steps, nats",
        "ceiling": "largest within-step PCC that the floor leaves possible: median over steps of "
        "sqrt(1 - floor^2 / var dH)",
        "under_floor": "share of the training tokens with |dH| below two floors",
        "identity_error": "largest error of the sum of influence and its terms of any deep step, "
        "relative to the sum of absolute terms",
        "gradient_audit": "largest gradient audit of any step",
        "moved_bfloat16": "share of the weights a step moves once rounded to bfloat16, median",
        "best_predictor": "largest within-step PCC",
        "unit": "what the intervals resample",
        "verdict": "what happened, one sentence a line",
    },
    "warnings": _RUN | {"level": "warning or note", "text": "what to know before trust"},
    "validation": _RUN
    | {
        "scope": "within_step: median over steps; pooled: all rows; within_group: median over "
        "steps of the correlation of deviations from prompt-group means",
        "stratum": "all, heldout, a quadrant, p[lo,hi) of the token's probability or H[lo,hi)",
        "predictor": "dH_pred_<predictor>",
        "n": "token rows",
        "steps": "steps with a value",
        **_banded("pcc", "Pearson correlation of prediction and dH"),
        "pcc_trim99": "the same on rows with |dH| up to its 99 % quantile (of the step; of all "
        "rows for pooled)",
        "srcc": "Spearman correlation, rows unweighted, on at most 2^14 random rows of a step and "
        "stratum; pooled: on at most 2^20 random rows",
        **_banded("sign", "share of equal signs among rows where neither side is zero"),
        **_banded("slope", "least-squares factor through the origin of dH on the prediction"),
        "mse": "mean squared error, nats^2",
        **_banded(
            "capture",
            "share of the sum of |dH| in the 1 % of a step's rows with the largest |prediction|, "
            "median over steps (within_step of strata all and heldout)",
        ),
        "oracle": "the same for the 1 % with the largest |dH|: as much as any form can hold",
        "unique_states": "different states among the rows (strata all and heldout)",
        "under_floor": _UNDER,
    },
    "validation_steps": _RUN
    | {
        "step": "optimizer step",
        "stratum": "all or heldout",
        "predictor": "dH_pred_<predictor>",
        "n": "token rows",
        "pcc": "Pearson correlation in this step",
        "srcc": "Spearman correlation in this step, on at most 2^14 random rows",
        "slope": "least-squares factor through the origin",
        "mean_dH": "mean dH",
        "mean_predicted": "mean prediction",
    },
    "curves": _RUN
    | {
        "method": "method of the run",
        "step": "optimizer step",
        "rollout": "rollout number",
        "age": "optimizer steps since the rollout",
        "reward": "mean reward of the rollout",
        "reward_smooth": "running mean over nine steps",
        "entropy_token_mean": "mean over the step's tokens before the step",
        "entropy_seq_mean": "mean over responses of their token means",
        "entropy_smooth": "running mean of entropy_token_mean over nine steps",
        "entropy_fixed": "mean entropy of the fixed probe set",
        "dH_train": "mean dH of the step's own tokens",
        "dH_heldout": "mean dH of tokens that are not in the step",
        "dH_smooth": "running mean of dH_train over nine steps",
        "clip_high_frac": "share of tokens clipped from above",
        "clip_low_frac": "share of tokens clipped from below",
        "touched_share": "share of tokens that the method clipped, selected or reweighted",
        "grad_norm": "gradient norm before clipping",
        "lr": "learning rate",
        "response_length": "mean response length, tokens",
        "truncated_share": "share of responses that met the length limit",
        "gradient_audit": "relative part of the gradient outside logp and entropy",
    },
    "density": _RUN
    | {
        "predictor": "dH_pred_<predictor>",
        "x": "centre of the bin, predicted dH",
        "y": "centre of the bin, measured dH",
        "count": "token rows in the bin (only bins with rows are stored)",
    },
    "density_panels": _RUN
    | {
        "predictor": "dH_pred_<predictor>",
        "x_range": "bins cover -x_range..x_range: the 99 % quantile of |prediction|",
        "y_range": "bins cover -y_range..y_range: the 99 % quantile of |dH|",
        "bins": "bins along each axis",
        "n": "token rows",
        "shown": "token rows inside both ranges",
        "steps": "steps",
        **_banded("slope", "pooled least-squares factor through the origin"),
        **_banded("pcc", "median within-step PCC"),
        "pcc_pooled": "PCC over all rows",
        "floor": "noise floor of dH, nats; NaN where none was measured",
        "unit": "what the interval resamples",
    },
    "calibration": _RUN
    | {
        "predictor": "dH_pred_<predictor>",
        "bin": "from the lowest predictions to the highest, by quantile; a value that fills a bin "
        "has one of its own. Edges: of at most 2^20 random rows",
        "lo": "lower edge of the prediction, in the bin",
        "hi": "upper edge",
        "n": "token rows",
        "steps": "steps with rows in the bin",
        "predicted": "mean prediction",
        **_banded("dH", "mean dH"),
        "unit": "what the intervals resample",
    },
    "quadrants": _RUN
    | {
        "quadrant": "sign of A and of log pi + H",
        "quantity": "dH, or a predictor",
        "n": "token rows",
        "steps": "steps",
        "share": "share of the tokens",
        "entropy": "mean entropy of the quadrant's tokens",
        "falls": "share of the quadrant's tokens with dH < 0",
        "under_floor": _UNDER,
        **_banded("mean", "mean over the quadrant's tokens"),
        **_banded("contribution", "share x mean: adds up to the mean over all tokens"),
        "unit": "what the intervals resample",
    },
    "regions": _RUN
    | {
        "axis": "probability of the sampled token, or entropy of its position",
        "bin": "name of the bin",
        "lo": "lower edge",
        "hi": "upper edge",
        "n": "token rows",
        "steps": "steps",
        "share": "share of the tokens",
        **_banded("dH", "mean dH"),
        "abs_share": "share of the sum of |dH|",
        "under_floor": _UNDER,
        "unit": "what the intervals resample",
    },
    "strata": _RUN
    | {
        "kind": "entropy, advantage, position, states or stage (quadrants and bins of the "
        "probability are in validation)",
        "stratum": "H[lo,hi); A > 0, A < 0; token positions in the response; how many logged "
        "training rows of the step are in the row's state; thirds of the steps",
        "predictor": "dH_pred_<predictor>",
        "n": "token rows",
        "steps": "steps with a value",
        **_banded("pcc", "Pearson correlation with dH, median over steps"),
        "slope": "least-squares factor through the origin, median over steps",
        "under_floor": _UNDER,
        "unit": "what the interval resamples",
    },
    "budget": _RUN
    | {
        "form": "dH_pred_<form>, or dH itself",
        "rung": "1 is the lowest; 0: beside the ladder",
        "adds": "what this rung takes in that the one below leaves out",
        "n": "token rows",
        "steps": "deep steps, the same ones for all rungs",
        "slope": "least-squares factor of dH on the form, median over steps; every form is scaled "
        "by that of its step before it is compared",
        **_banded("pcc", "Pearson correlation with dH, median over steps"),
        **_banded("explained", "share of the variance of dH in a step, PCC^2, mean over steps"),
        **_banded("added", "explained less that of the rung below; adds up to 1 over the ladder"),
        "difference": "variance of the difference to the rung below, both scaled, over the "
        "variance of dH, mean over steps",
        "unit": "what the intervals resample",
    },
    "influence": _RUN
    | {
        "target": "dH, influence or influence_marginal",
        "kind": "form: dH_pred_<predictor>; push-free: the form without the token's push c",
        "predictor": "name of the form",
        "n": "token rows",
        "steps": "deep steps",
        **_banded("pcc", "Pearson correlation with the target, median over steps"),
        **_banded("srcc", "Spearman correlation on at most 2^14 rows of a step, median over steps"),
        **_banded("sign", "share of equal signs where neither side is zero, median over steps"),
        **_banded(
            "capture",
            "share of the sum of |target| in the 1 % of the tokens with the largest "
            "|score|, median over steps",
        ),
        **_banded("oracle", "the same for the largest |target|: as much as any score can hold"),
        "unit": "what the intervals resample",
    },
    "comparison": {
        "level": "run, or method (mean over its runs)",
        "name": "run or method",
        "method": "method",
        "runs": "number of runs",
        "steps": "optimizer steps (fewest of the runs)",
        "metric": "entropy, reward, dH_train, dH_heldout",
        "first": "mean of the first five steps with a value",
        "last": "mean of the last five steps with a value",
        "mean": "mean over the steps",
        "change": "last - first",
        "change_lo": "lower end of the 95 % t interval over runs",
        "change_hi": "upper end of the 95 % t interval over runs",
    },
}
# Further columns may follow where the run has them: dH_pred_<name> step means in curves.


def ordered_predictors(names: Iterable[str]) -> list[str]:
    """Predictor names in the order of PREDICTOR_ORDER, unknown ones after them by name."""
    found = set(names)
    known = [name for name in PREDICTOR_ORDER if name in found]
    return known + sorted(found - set(known))


def frame(name: str, rows: list[dict] | pd.DataFrame) -> pd.DataFrame:
    """Rows as the table `name`: its columns in order, missing ones NaN, further ones last."""
    data = pd.DataFrame(rows)
    columns = list(TABLES[name])
    return data.reindex(columns=columns + [c for c in data.columns if c not in columns])


Row = dict[str, Any]


def records(data: pd.DataFrame, **equal: object) -> list[Row]:
    """The rows whose columns have the given values, as dicts, in order."""
    rows: list[Row] = [{str(k): v for k, v in row.items()} for row in data.to_dict("records")]
    return [row for row in rows if all(row[k] == v for k, v in equal.items())]
