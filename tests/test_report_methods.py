"""The report and the terminal summary of several runs: methods first, and how many seeds."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from entropy_lab.analysis import Analysis, analyze
from entropy_lab.report import methods, summary_lines, write_report
from entropy_lab.report.text import grouped
from synthetic import write_run
from test_evaluations import evaluate

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Three seeds of grpo and of one that earns more and keeps entropy, and one of opo."""
    folder = tmp_path_factory.mktemp("report")
    paths = []
    for method, seeds, last, reward in (
        ("grpo", 3, 0.1, 0.4), (EVIL, 3, 0.4, 0.8), ("opo", 1, 0.2, 0.3),
    ):  # fmt: skip
        for seed in range(seeds):
            path = folder / f"{'grpo' if method == 'grpo' else method[:2]}-{seed}"
            write_run(
                path, method=method, seed=seed, steps=20, groups=2, group_size=2, length=2,
                entropy=(0.5, last + 0.02 * seed), reward=(0.2, reward + 0.02 * seed),
            )  # fmt: skip
            paths.append(path)
    evaluate(paths[0], {20: 0.4})
    return analyze(paths, tokens=False)


@pytest.fixture(scope="module")
def page(found: Analysis) -> str:
    return write_report(found.tables, found.out, "entropy-lab analyze runs/*").read_text()


def test_methods_come_first_with_their_seeds_and_intervals(found: Analysis, page: str) -> None:
    rows = found.tables["methods"].set_index("method")
    at = page.index("Which method ends where")
    assert page.index("Most reward at the end") < at < page.index("How they got there")
    body = page[at:].split("<table>")[1].split("</table>")[0]
    cells = body.split("<th scope=row class=t>grpo</th>")[1].split("</tr>")[0]
    assert cells.startswith("<td class=t>3 <small>(0, 1, 2)</small></td>")
    r = rows.loc["grpo"]
    numbers = [f"{r[k]:.3g}" for k in ("entropy", "entropy_lo", "entropy_hi")]
    assert f"<td>{numbers[0]} <small>[{numbers[1]}, {numbers[2]}]</small></td>" in cells
    assert cells.endswith("<td>baseline</td>")
    single = body.split("<th scope=row class=t>opo</th>")[1].split("</tr>")[0]
    assert single.startswith("<td class=t>1 seed: no interval</td>") and "small" not in single
    assert "The 2 comparisons with grpo are not adjusted for their number." in page
    assert "P(more reward than grpo)" in body


def test_levels_that_are_never_reached_are_said(page: str) -> None:
    part = page.split("Reward at equal entropy")[1].split("</table>")[0]
    cells = part.split(f">{html.escape(EVIL)}</th>")[1]
    assert cells.split("</tr>")[0].count("not reached") == 4  # it keeps its entropy
    last = part.split("<th scope=row class=t>grpo</th>")[1].split("</tr>")[0]
    assert re.search(r"\(\d of 3\)", last)  # some seeds end above the mean of all


def test_the_fit_the_sums_and_the_evaluations_have_their_tables(found: Analysis, page: str) -> None:
    fit = found.tables["exponential_fit"].query("level == 'method'").set_index("name")
    rows = page.split("Reward as a function of entropy")[1].split("</table>")[0]
    assert f"<td>{fit.loc['opo', 'a']:.3g}</td>".replace("-", "−") in rows
    assert "Fits of every run" in page and "Sums in numbers" in page
    sums = page.split("Sums in numbers")[1].split("</table>")[0]
    assert sums.count("<td class=t>dH_heldout</td>") == 3  # one a method
    assert "pass@k on held-out problems" in page and "<td class=t>held out</td>" in page


def test_many_runs_leave_out_what_shows_single_ones(found: Analysis, page: str) -> None:
    assert "left out, because there are 7 runs" in page
    assert "Predicted against measured" not in page and ">What happened</h2>" not in page
    names = {p.stem for p in (found.out / "figures").iterdir()}
    assert names == {"methods_summary", "methods_curves", "drift"}
    assert EVIL not in page and "7 runs compared" in page
    assert "7 runs: token rows were not read" in page


def test_the_terminal_shows_methods_and_not_seven_runs(found: Analysis) -> None:
    lines = summary_lines(found.tables)
    assert lines[0].startswith("7 runs of 3 methods, compared over steps 0 to 19")
    assert lines[1].startswith(f"Most reward at the end: {EVIL}, 0.7")
    # Three seeds that all beat three others are no proof.
    assert f"undecided: {EVIL}; no interval: opo" in lines[2]
    head = next(i for i, line in enumerate(lines) if line.startswith("method"))
    grpo, _, opo = lines[head + 1 : head + 4]
    r = found.tables["methods"].set_index("method").loc["grpo"]
    assert f"{r['reward']:.2f} [{r['reward_lo']:.2f}, {r['reward_hi']:.2f}]" in grpo
    assert grpo.endswith("baseline") and opo.endswith("1 seed: no interval")
    assert not any(line.startswith("grpo-0") for line in lines)
    assert sum("token rows were not read" in line for line in lines) == 1
    assert len(lines) < 12


def test_a_few_runs_are_shown_alone_as_well(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        write_run(tmp_path / name, steps=8, seed=seed)
    found = analyze([tmp_path / "one", tmp_path / "two"])
    text = write_report(found.tables, found.out, "x").read_text()
    assert "2 runs compared" in text and "t interval over the runs" in text
    assert "Predicted against measured" in text and "How well each prediction did: two" in text
    lines = summary_lines(found.tables)
    runs = next(i for i, line in enumerate(lines) if line.split()[:2] == ["run", "method"])
    assert [line.split()[0] for line in lines[runs + 1 : runs + 3]] == ["one", "two"]
    assert not any("one run per method" in line for line in lines)  # both are grpo


def test_a_single_run_of_each_method_is_said_to_prove_nothing(tmp_path: Path) -> None:
    for method in ("grpo", "steer"):
        write_run(tmp_path / method, steps=8, method=method)
    lines = summary_lines(analyze([tmp_path / "grpo", tmp_path / "steer"]).tables)
    assert any("one run per method: differences have no interval" in line for line in lines)
    assert sum(line.endswith("1 seed: no interval") for line in lines) == 2


def test_runs_without_rewards_are_compared_by_their_entropy(tmp_path: Path) -> None:
    for method in ("grpo", "steer"):
        write_run(tmp_path / method, steps=8, method=method, probed=False)
        log = tmp_path / method / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        bare = [json.dumps({k: v for k, v in x.items() if k != "reward"}) + "\n" for x in lines]
        log.write_text("".join(bare))
    found = analyze([tmp_path / "grpo", tmp_path / "steer"])
    json.dumps(found.to_json(), allow_nan=False)
    text = write_report(found.tables, found.out, "x").read_text()
    assert "Which method ends where" in text and "How they got there" in text
    assert "At equal reward" not in text and "Reward as a function of entropy" not in text
    lines = summary_lines(found.tables)
    assert not any("Most reward" in line or "is P clear" in line for line in lines)
    assert ["steer", "1", "0.25", "-", "-"] in [line.split()[:5] for line in lines]


def test_methods_are_sorted_by_what_their_intervals_say() -> None:
    def row(method: str, low: float, high: float, value: float = 0.5) -> dict:
        bands = {f"{k}{e}": 0.5 for k in ("entropy", "reward") for e in ("", "_lo", "_hi")}
        return {"method": method, "baseline": "grpo", "seeds": 5, "axis": "rollout", "first": 0,
                "last": 9, "improvement": value, "improvement_lo": low, "improvement_hi": high,
                **bands}  # fmt: skip

    nan = float("nan")
    rows = [row("grpo", nan, nan, nan), row("up", 0.51, 1), row("down", 0, 0.49),
            row("even", 0.3, 0.7), row("lone", nan, nan)]  # fmt: skip
    lines = methods.verdict({"methods": pd.DataFrame(rows)})
    assert "compared over rollouts 0 to 9" in lines[0]
    assert lines[-1].endswith("more: up; less: down; undecided: even; no interval: lone.")
    assert len(methods.verdict({"methods": pd.DataFrame(rows[:1])})) == 2


def test_equal_warnings_are_one_line_with_the_number_of_runs() -> None:
    rows = [("", "warning", "w"), ("a", "note", "x"), ("b", "note", "x"), ("b", "note", "y")]
    table = pd.DataFrame(rows, columns=["run", "level", "text"])
    assert grouped(table) == [("warning", "w"), ("note", "2 runs: x"), ("note", "b: y")]
    assert grouped(table[table["run"] == "a"]) == [("note", "x")]
