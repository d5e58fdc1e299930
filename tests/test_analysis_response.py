"""Local and visitation term in the summary and in the report, against the steps table and scipy."""

from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from entropy_lab import load
from entropy_lab.analysis import analyze
from entropy_lab.analysis.response import response_terms
from entropy_lab.report import write_report
from synthetic import write_run
from toy import Toy, adamw, run_loop

NAN = float("nan")
STEPS = pd.DataFrame(
    {
        "step": range(6),
        "age": [0, 1, 0, 1, 0, 1],
        "local_heldout": [-0.3, NAN, -0.1, -9.0, -0.2, NAN],
        "visitation_heldout": [0.03, NAN, 0.02, 9.0, 0.07, NAN],
        "local_train": [-1.0, -2.0, -3.0, -4.0, NAN, -5.0],
        "visitation_train": [0.1, 0.2, 0.3, 0.4, NAN, 0.5],
    }
)


def check(found: dict, name: str, values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    got = [found[name], found[f"{name}_lo"], found[f"{name}_hi"]]
    assert got == pytest.approx([np.mean(values), low, high], rel=1e-9)


def test_means_are_of_held_out_responses_at_age_zero() -> None:
    found = response_terms(STEPS)
    assert (found["terms_of"], found["terms_steps"]) == ("heldout", 3)
    check(found, "local_term", [-0.3, -0.1, -0.2])
    check(found, "visitation_term", [0.03, 0.02, 0.07])


def test_without_held_out_responses_the_updates_own_are_taken_and_named() -> None:
    found = response_terms(STEPS.drop(columns=["local_heldout"]))
    assert (found["terms_of"], found["terms_steps"]) == ("train", 5)
    check(found, "visitation_term", [0.1, 0.2, 0.3, 0.4, 0.5])
    # All held-out values at age 1 or missing: the same.
    assert response_terms(STEPS.assign(age=[1, 1, 1, 1, 1, 1]))["terms_of"] == "train"


def test_one_step_has_no_interval_and_no_step_no_number() -> None:
    one = response_terms(STEPS.iloc[:1])
    assert one["local_term"] == -0.3 and math.isnan(one["local_term_lo"])
    none = response_terms(STEPS[["step"]])
    assert none["terms_steps"] == 0 and math.isnan(none["visitation_term"])


def test_the_report_says_both_terms_in_a_sentence(tmp_path: Path) -> None:
    model = Toy()
    run_loop(model, adamw(model), tmp_path / "run", steps=6, held_out=True)
    found = analyze([tmp_path / "run"])
    row = found.tables["summary"].iloc[0]
    steps = load(tmp_path / "run").steps()
    check(dict(row), "local_term", steps["local_heldout"].tolist())
    check(dict(row), "visitation_term", steps["visitation_heldout"].tolist())
    text = unescape(write_report(found.tables, found.out, "x").read_text(encoding="utf-8"))
    (sentence,) = re.findall(r"A response's entropy changed by [^<]*", text)
    shown = re.findall(r"−?[0-9.]+(?:×10⁻?[⁰-⁹¹²³]+)?", sentence)
    raised = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")
    values = [float(s.translate(raised).replace("×10", "e")) for s in shown[:6]]
    names = ("local_term", "visitation_term")
    wanted = [row[f"{n}{end}"] for n in names for end in ("", "_lo", "_hi")]
    assert values == pytest.approx(wanted, rel=6e-3)
    assert "held-out responses, mean of 6 steps; brackets: 95 % t intervals over steps" in sentence


def test_a_log_without_the_terms_gets_no_sentence(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=6)
    found = analyze([tmp_path / "run"])
    assert found.tables["summary"]["terms_steps"].item() == 0
    text = write_report(found.tables, found.out, "x").read_text(encoding="utf-8")
    assert "because other tokens come next" not in text
