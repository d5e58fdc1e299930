"""The figures of deep steps show the numbers of their tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from entropy_lab.analysis import analyze
from entropy_lab.analysis.tables import TARGETS
from entropy_lab.errors import RunError
from entropy_lab.plots import draw, make
from entropy_lab.plots.influence_scores import PATH_FORMS
from entropy_lab.plots.style import theme
from entropy_lab.report import write_report
from synthetic import write_run

Tables = dict[str, pd.DataFrame]


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    with theme("light"):
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = tmp_path_factory.mktemp("deep")
    for seed, name in enumerate(("one", "two")):
        write_run(folder / name, steps=10, deep_every=1, held_out=False, seed=seed, floor=1e-5)
    return analyze([folder / "one", folder / "two"]).tables


def only(tables: Tables, run: str) -> Tables:
    return {name: data[data["run"] == run] for name, data in tables.items() if "run" in data}


def test_the_ladder_and_its_shares_are_the_columns_of_the_budget(two: Tables) -> None:
    data = only(two, "two")["budget"]
    ladder, shares = make("error_budget", only(two, "two")).figure.axes
    rungs = data[(data["rung"] > 0) & (data["form"] != "dH")]
    on, off = ladder.get_lines()
    np.testing.assert_allclose(on.get_xdata(), rungs["pcc"])
    np.testing.assert_allclose(off.get_xdata(), data[data["rung"] == 0]["pcc"])
    ends = np.array(ladder.collections[0].get_segments())[:, :, 0]
    known = data[data["form"] != "dH"]
    np.testing.assert_allclose(ends, known[["pcc_lo", "pcc_hi"]])
    bars = [(bar.get_x(), bar.get_width()) for bar in shares.patches]
    np.testing.assert_allclose([b[1] for b in bars], data[data["rung"] > 0]["added"])
    # Each bar starts where the one below ends, and the last ends at the whole variance.
    np.testing.assert_allclose([b[0] for b in bars[1:]], [sum(b) for b in bars[:-1]])
    assert sum(bars[-1]) == pytest.approx(1)
    words = [label.get_text().replace("\n", " ") for label in shares.get_yticklabels()]
    assert words == list(data[data["rung"] > 0]["adds"])


def test_influence_panels_show_every_closed_form_against_every_target(two: Tables) -> None:
    data = only(two, "one")["influence"]
    figure = make("influence_scores", only(two, "one")).figure
    for axes, target in zip(figure.axes, TARGETS, strict=False):
        here = data[(data["target"] == target) & ~data["predictor"].isin(PATH_FORMS)]
        pearson, spearman = axes.get_lines()[:2]
        np.testing.assert_allclose(pearson.get_xdata(), here["pcc"])
        np.testing.assert_allclose(spearman.get_xdata(), here["srcc"])
    for axes, target in zip(figure.axes[3:], ("dH", "influence_marginal"), strict=True):
        assert axes.get_title(loc="left") == f"top 1 % hold of\n{target}"
        here = data[(data["target"] == target) & ~data["predictor"].isin(PATH_FORMS)]
        widths = [bar.get_width() for bar in axes.patches]
        np.testing.assert_allclose(widths, [*here["oracle"], *here["capture"]])


def test_several_runs_have_a_row_each(two: Tables) -> None:
    titles = [a.get_title(loc="left") for a in make("error_budget", two).figure.axes]
    assert [t.split(" ")[0] for t in titles] == ["one", "one", "two", "two"]
    assert len(make("influence_scores", two).figure.axes) == 10


def test_without_a_deep_step_the_figure_is_left_out_and_the_report_stands(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=6)
    found = analyze([tmp_path / "run"])
    with pytest.raises(RunError, match="no deep step was recorded; record it .*deep_every=10"):
        make("error_budget", found.tables)
    with pytest.raises(RunError, match="no deep step was recorded"):
        draw("error_budget", tmp_path / "run", tmp_path / "figures")
    text = write_report(found.tables, found.out, "x").read_text()
    assert "Needs deep steps: record with probe.deep_every = 10" in text
    assert "Error budget in numbers" not in text and "(rms against float64)" not in text


def test_the_report_has_the_budget_and_one_sentence_on_the_floor(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=8, deep_every=1, floor=2e-5)
    found = analyze([tmp_path / "run"])
    text = write_report(found.tables, found.out, "x").read_text()
    assert "Where the predictions go wrong" in text and "Whose push it was" in text
    for name, row in found.tables["budget"].set_index("form").iterrows():
        cells = text.split(f"<th scope=row class=t>{name}</th><td class=t>")[1].split("</tr>")[0]
        assert f"{row['explained']:.1%}" in cells
        if row["rung"]:
            ends = f"[{100 * row['added_lo']:.1f}, {100 * row['added_hi']:.1f}]"
            shown = f"<td>{row['added']:.1%} <small>{ends}</small></td>"
            assert shown.replace("-", "−") in cells
    scores = found.tables["influence"].set_index(["predictor", "kind", "target"])
    row = scores.loc[("steer", "push-free", "influence_marginal")]
    cells = text.split(">steer / push</th>")[1].split("</tr>")[0].split("<td>")[1:]
    assert len(cells) == 12
    for cell, (key, spec) in zip(
        cells[8:], {"pcc": ".2f", "srcc": ".2f", "sign": ".0%", "capture": ".1%"}.items(),
        strict=True,
    ):  # fmt: skip
        assert cell.startswith(f"{row[key]:{spec}} <small>".replace("-", "−")), key
    share = found.tables["summary"]["under_floor"].item()
    assert f"{share:.1%} of the tokens have |dH| under two floors" in text
