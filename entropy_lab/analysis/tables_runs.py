"""The analysis tables that compare methods over seeds, and those that a comparison is made of.

A part of tables.TABLES; there stands what all tables have in common.
"""

from __future__ import annotations


def _banded(name: str, meaning: str) -> dict[str, str]:
    ends = {f"{name}_{end}": f"{word} end of the 95 % interval over seeds; none for a single one"
            for end, word in (("lo", "lower"), ("hi", "upper"))}  # fmt: skip
    return {name: meaning, **ends}


_METHOD = {"method": "method, with those of its settings that differ between the runs given"}
_AXIS = {
    "axis": "what runs are aligned on: step, the optimizer step, or rollout, where the runs take "
    "different numbers of steps on a rollout (then the means over a rollout's steps are compared)"
}
_NAMED = {
    "level": "run, or method (over its runs)",
    "name": "run or method",
    **_METHOD,
    "seeds": "number of runs",
}
_UNIT = {"unit": "what the intervals resample; '1 seed: no interval' where there is none"}

RUN_TABLES: dict[str, dict[str, str]] = {
    "effects": {
        "run": "name of the run directory",
        "quantity": "a column of metrics.jsonl or steps/: entropy, reward, dH, what the method did",
        "of": "first or last five steps with a value, or mean: over all steps (dH_heldout: age 0)",
        "steps": "steps that were averaged",
        "value": "their mean",
        "value_lo": "lower end of the 95 % t interval over these steps; none for a single one",
        "value_hi": "upper end",
    },
    "methods": {
        **_METHOD,
        "baseline": "the method that the others are compared with",
        "seeds": "number of runs",
        "which": "their seeds, as run.seed states them",
        **_AXIS,
        "first": "first value of axis that is compared",
        "last": "last value of axis that is compared, the last one of the shortest run given",
        **_banded("entropy", "IQM of the last five entropies of all seeds"),
        **_banded("reward", "IQM of the last five rewards of all seeds"),
        **_banded("entropy_area", "area under the entropy curve over its length, IQM over seeds"),
        **_banded("reward_area", "area under the reward curve over its length, IQM over seeds"),
        **_banded(
            "improvement",
            "chance that a seed of the method ends with more reward (mean of the last five) than "
            "one of the baseline, ties half",
        ),
        **_UNIT,
    },
    "predictor_seeds": {
        **_METHOD,
        "target": "dH or influence_marginal",
        "kind": "form: dH_pred_<predictor>; push-free: the form without the token's push c",
        "predictor": "name of the form",
        "seeds": "runs that have it",
        "n": "token rows of all of them",
        **_banded("pcc", "Pearson correlation within a step, mean over runs"),
        **_banded("srcc", "Spearman correlation within a step, mean over runs"),
        **_banded("sign", "share of equal signs where neither side is zero, mean over runs"),
        **_banded("mse", "median over steps of the squared error in nats^2, mean over runs; only "
                  "of target dH"),
    },  # fmt: skip
    "method_curves": {
        **_METHOD,
        **_AXIS,
        "at": "value of axis",
        "metric": "entropy, reward, ...",
        **_banded("mean", "running mean over nine values of axis, mean over seeds"),
        "seeds": "runs with a value here; a method's curve ends where its shortest run does",
    },
    "equal_levels": {
        **_NAMED,
        "matched": "reward or entropy: what is equal",
        "share": "of the way from the first to the last value of the baseline's mean curve",
        "target": "value of `matched` there",
        "reached": "runs whose running mean passes the target; the others are left out",
        "at": "value of axis where it does so first, mean over runs",
        **_banded(
            "value",
            "the other quantity there (entropy at equal reward, reward at equal "
            "entropy), mean over runs; NaN where none passes the target",
        ),
        "baseline_value": "the same of the baseline",
    },  # fmt: skip
    "exponential_fit": {
        **_NAMED,
        "n": "steps with entropy and reward",
        **_banded("a", "R = -a e^H + b, least squares over steps, H in nats"),
        **_banded("b", "the reward that the fit gives for e^H = 0"),
        "residual_sd": "standard deviation of R about the fit, n - 2 degrees of freedom",
        "r2": "share of the variance of R",
    },
    "fit_residuals": {
        "run": "name of the run directory",
        **_METHOD,
        "step": "optimizer step",
        "entropy": "mean entropy of the step's tokens, nats",
        "reward": "mean reward of the step's responses",
        "fitted": "reward that the run's own fit gives",
        "residual": "reward - fitted",
    },
    "drift": {
        "level": "run, or method (mean over its runs, at steps that all of them have)",
        "name": "run or method",
        **_METHOD,
        "predictor": "dH_pred_<predictor>, or the measured dH_train, dH_heldout",
        "step": "optimizer step",
        "steps": "steps in the sums so far",
        "predicted": "sum so far of the predictor's step means, over the rows of each step (the "
        "update's own tokens), not over the fixed set",
        "realised": "entropy of the fixed probe set after the step, less that at the start; where "
        "the predictor has no value at every step: the changes in the steps that have one, summed",
        "drift": "predicted - realised",
        "factor": "least-squares factor of realised on predicted over the first half of the steps",
        "drift_scaled": "factor x predicted - realised",
        "fixed": "entropy of the fixed probe set after the step, less that at the start",
        "scaled": "fixed + drift_scaled; factor x predicted where the predictor has every step",
    },
    "drift_final": {
        **_NAMED,
        "predictor": "dH_pred_<predictor>, or the measured dH_train, dH_heldout",
        "steps": "steps that are summed (fewest of the runs)",
        "covered": "share of the run's steps that they are",
        "predicted": "sum of the predictions, nats (drift has the rows that it is of)",
        "realised": "change of the fixed probe set, nats",
        **_banded("drift", "predicted - realised at the end"),
        "factor": "least-squares factor of realised on predicted over the first half of the "
        "steps, median over runs",
        **_banded("drift_scaled", "factor x predicted - realised at the end"),
    },
    "pass_at_k": {
        **_NAMED,
        "benchmark": "set of held-out problems",
        "step": "optimizer steps taken",
        "n": "problems",
        "samples": "responses to each problem",
        "k": "responses of which one has to be right",
        **_banded("avg_at_k", "mean reward of a response"),
        **_banded("pass_at_k", "chance of a right one among k responses, mean over problems"),
        "pass_at_k_se": "standard error of pass_at_k over problems (runs)",
        **_banded("entropy", "mean over the tokens of these responses, at temperature 1, nats"),
        **_banded("train_entropy", "running mean of the training entropy at that step, nats"),
        "temperature": "of the evaluation's sampling",
        "top_p": "of the evaluation's sampling",
        "max_tokens": "most tokens of a response",
    },
    "benchmarks": {
        "model": "name of the model, without folders",
        **_METHOD,
        "benchmark": "set of problems; average: of all of the method's sets, equally weighted",
        "seeds": "runs that have it",
        **_banded("accuracy", "share of right responses (avg@k) in the last evaluation; a single "
                  "seed's interval is over problems"),
        "step": "optimizer steps taken; NaN where runs or sets differ",
        "n": "problems",
        "samples": "responses to each problem",
        "temperature": "of the evaluation's sampling",
        "top_p": "of the evaluation's sampling",
        "max_tokens": "most tokens of a response",
        **_UNIT,
    },
}  # fmt: skip
# Made from several runs; the other tables here are made for a single run as well.
OF_SEVERAL = (
    "comparison", "methods", "predictor_seeds", "method_curves", "equal_levels",
    "exponential_fit", "fit_residuals"
)  # fmt: skip
