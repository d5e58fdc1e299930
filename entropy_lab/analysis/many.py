"""What several runs say together: the tables over methods and seeds, from those of each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from entropy_lab.analysis.align import Aligned, align
from entropy_lab.analysis.compare import comparison
from entropy_lab.analysis.drift import drift_final, with_methods
from entropy_lab.analysis.equal import equal_levels
from entropy_lab.analysis.evaluations import over_seeds
from entropy_lab.analysis.exponential import exponential_fit
from entropy_lab.analysis.methods import method_curves, methods
from entropy_lab.analysis.predictor_seeds import predictor_seeds
from entropy_lab.analysis.seeds import stratified
from entropy_lab.analysis.tables import frame

Tables = Mapping[str, pd.DataFrame]


def run_lengths(curves: pd.DataFrame) -> dict[str, int]:
    """Optimizer steps of each run, in order."""
    return {str(run): len(data) for run, data in curves.groupby("run", sort=False)}


def over_runs(
    tables: Tables, seeds: Sequence[int | None], beware: Sequence[str] = ()
) -> dict[str, pd.DataFrame]:
    """The tables of a comparison; `tables` holds the rows of all runs, one run after another.

    seeds: of the runs, None where unknown. beware: sentences for the table warnings, before those
    of each run.
    """
    curves = tables["curves"]
    runs = align(curves)
    draws = stratified(Counter(runs.methods))
    fits, residuals = exponential_fit(curves, draws)
    texts = [*beware, *_lengths(runs)]
    ours = frame("warnings", [{"run": "", "level": "warning", "text": text} for text in texts])
    return {
        "warnings": pd.concat([t for t in (ours, tables["warnings"]) if len(t)] or [ours]),
        "comparison": comparison(curves),
        "methods": methods(runs, draws, seeds),
        "predictor_seeds": predictor_seeds(
            tables["validation"],
            tables["influence"],
            dict(zip(runs.runs, runs.methods, strict=True)),
            draws,
        ),
        "method_curves": method_curves(runs, draws),
        "equal_levels": equal_levels(runs, draws),
        "exponential_fit": fits,
        "fit_residuals": residuals,
        "drift": with_methods(tables["drift"]),
        "drift_final": drift_final(tables["drift"], run_lengths(curves), draws),
        "pass_at_k": over_seeds(tables["pass_at_k"], draws),
    }


def _lengths(runs: Aligned) -> list[str]:
    """What to know where runs are of different lengths, or take their steps differently."""
    texts = []
    if runs.axis == "rollout":
        texts.append(
            "the runs take different numbers of steps on a rollout: they are aligned on the "
            "rollout, with the mean over its steps"
        )
    if runs.ends.min() < runs.ends.max():
        short = runs.runs[int(runs.ends.argmin())]
        texts.append(
            f"{short} ends at {runs.axis} {runs.last:g}, the longest run at {runs.ends.max():g}: "
            f"methods are compared up to {runs.axis} {runs.last:g}; leave short runs out to "
            "compare more"
        )
    return texts
