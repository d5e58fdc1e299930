"""The analysis tables behind single figures: tokens and words, weights, layers, targets.

A part of tables.TABLES; there stands what all tables have in common.
"""

from __future__ import annotations

_RUN = {"run": "name of the run directory"}
_UNIT = {"unit": "what the intervals resample"}
_REST = "-1: all tokens that have no row of their own"


def _banded(name: str, meaning: str) -> dict[str, str]:
    ends = {f"{name}_lo": "lower end of the 95 % interval", f"{name}_hi": "upper end of it"}
    return {name: meaning, **ends}


_WORD = {
    "token_id": f"id of the sampled token; {_REST}",
    "text": "its text; empty where the run keeps no vocabulary",
}

ITEM_TABLES: dict[str, dict[str, str]] = {
    "distribution": _RUN
    | {
        "region": "all, or a quadrant: sign of A and of log pi + H",
        "sign": "of the dH in the bin: -1, 0 (exactly 0) or 1",
        "lo": "lower edge of |dH|, nats (sign 0: 0)",
        "hi": "upper edge of |dH|, nats; the last one is open",
        "n": "token rows",
        "steps": "steps with token rows",
        **_banded("share", "share of the region's tokens"),
        "abs_share": "share of the sum of |dH| over all tokens of the run",
        "floor": "noise floor of dH, nats; NaN where none was measured",
        **_UNIT,
    },
    "plane": _RUN
    | {
        "sign": "of the advantage: A > 0 or A < 0",
        "probability": "bin of the token's probability",
        "entropy": "bin of its position's entropy, nats",
        "n": "token rows",
        "steps": "steps with token rows",
        "share": "share of all tokens",
        **_banded("dH", "mean dH"),
        **_banded("contribution", "share x mean: with A = 0 they add up to the mean dH"),
        "likely": "share of the cell's tokens with log pi > -H",
        **_UNIT,
    },
    "words": _RUN
    | _WORD
    | {
        "n": "training token rows",
        "steps": "steps with token rows",
        "share": "share of the tokens",
        "probability": "mean probability",
        **_banded("dH", "mean dH, nats"),
        **_banded("contribution", "share x mean dH: adds up to the mean dH over all tokens"),
        **_banded("abs_share", "share of the sum of |dH|"),
        "influence_n": "token rows of deep steps",
        **_banded("influence", "mean influence, nats; NaN without deep steps"),
        **_UNIT,
    },
    "words_change": _RUN
    | _WORD
    | {
        "stage": "first, middle or last third of the steps",
        "n": "training token rows",
        "steps": "steps of the stage",
        "share": "share of the stage's tokens",
        **_banded("dH", "mean dH, nats"),
        **_banded("contribution", "share x mean dH in the stage"),
        **_banded("abs_share", "share of the stage's sum of |dH|"),
        **_UNIT,
    },
    "weight_steps": _RUN
    | {
        "step": "optimizer step",
        "n": "training token rows with an advantage",
        "varies": "whether the method gave the tokens different weights",
        "pinned": "share of the tokens with a weight within 1 % of the step's largest",
        "weight_mean": "mean weight",
        "weight_min": "smallest weight",
        "omega_peak": "largest |Omega| over its 99 % quantile; Omega is dH_pred_steer",
        "argmax_token": "token id of the largest |Omega|",
        "argmax_text": "its text; empty where the run keeps no vocabulary",
        "argmax_probability": "its probability",
    },
    "weights": _RUN
    | {
        "method": "method of the run",
        "steps": "steps",
        "n": "token rows",
        "varying_steps": "steps whose weights differ",
        **_banded("pinned", "mean over those steps"),
        **_banded("weight_mean", "mean over those steps"),
        **_banded("omega_peak", "median over the steps"),
        **_banded("argmax_rare", "share of the steps whose largest |Omega| is a token with "
                  "probability below 0.1"),
        **_UNIT,
    },
    "layers": _RUN
    | {
        "layer": "embed, layer_<i>, final, head",
        "steps": "deep steps",
        **_banded("part", "part of the first-order change of mean entropy, nats, mean over steps"),
        **_banded("share", "of the sum of |part| over layers, mean over steps"),
        **_UNIT,
    },
    "train_heldout": _RUN
    | {
        "method": "method of the run",
        "age": "optimizer steps since the rollout; -1: all ages",
        "steps": "steps with both",
        **_banded("train", "mean dH of the update's own tokens, nats, mean over steps"),
        **_banded("heldout", "mean dH of tokens that the step does not use, the same"),
        **_banded("difference", "train - heldout, in pairs of a step"),
        **_banded("ratio", "train / heldout, of the means"),
        **_UNIT,
    },
    "targets": _RUN
    | {
        "step": "optimizer step",
        "target": "change of mean entropy that was asked for, nats",
        "predicted": "change that the method expected of its step",
        "realised": "dH_train, measured",
        "dose": "factor on the tokens that lower entropy",
        "feasible": "1 where the target lay within reach",
    },
    "target_sums": _RUN
    | {
        "kind": "feasible steps, or the others",
        "steps": "steps",
        "target": "change that was asked for, nats",
        **_banded("predicted", "mean over the steps"),
        **_banded("realised", "mean over the steps"),
        **_banded("missed", "realised - target"),
        "spread": "standard deviation of realised - target over steps",
        **_UNIT,
    },
}  # fmt: skip
