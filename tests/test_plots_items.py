"""The figures behind the paper's items and our own show the numbers of their tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from entropy_lab.analysis.audit_tables import FACTORS
from entropy_lab.analysis.bins import entropy_names, probability_names
from entropy_lab.analysis.tables import QUADRANTS
from entropy_lab.plots import attempt, make, sheet
from entropy_lab.plots.style import power_of_ten, theme, token_text
from entropy_lab.plots.words import section
from made_tables import HOSTILE, Tables, aimed, audited, layered, one_run, several_runs


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    with theme("light"):
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    found = one_run(tmp_path_factory.mktemp("one") / "run", steps=16, deep_every=1)
    return found | audited() | aimed() | layered()


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    arms = {"grpo": 3, "steer lambda_min=0.5": 2, "steer lambda_min=0.9": 1}
    return several_runs(tmp_path_factory.mktemp("over"), arms)


def by_title(name: str, tables: Tables) -> dict[str, Axes]:
    figure = make(name, tables).figure
    return {a.get_title(loc="left"): a for a in figure.findobj(Axes) if a.get_title(loc="left")}


def dots(axes: Axes) -> list[float]:
    """x of every single point, as it was drawn."""
    single = [ln for ln in axes.get_lines() if len(np.atleast_1d(ln.get_xdata())) == 1]
    return [float(np.atleast_1d(ln.get_xdata())[0]) for ln in single]


def test_the_distribution_has_both_sides_and_the_band_under_two_floors(tables: Tables) -> None:
    data = tables["distribution"].query("region == 'all'")
    axes = by_title("change_distribution", tables)["Share of the tokens"]
    falls, rises = axes.get_lines()
    for line, sign in ((falls, -1), (rises, 1)):
        part = data[data["sign"] == sign].sort_values("lo")
        np.testing.assert_allclose(line.get_ydata(), part["share"])
        x = np.asarray(line.get_xdata())
        inner = part["lo"].to_numpy() > 0
        assert (x[inner] > part["lo"][inner]).all() and (x < part["hi"]).all()
    (band,) = axes.patches
    assert band.get_x() + band.get_width() == pytest.approx(2 * data["floor"].iloc[0])
    drawing = make("change_distribution", tables)
    assert f"Noise floor of a dH: {data['floor'].iloc[0]:.2g} nats" in drawing.caption
    quiet = tables | {"distribution": tables["distribution"].assign(floor=np.nan)}
    assert "No noise floor was measured" in make("change_distribution", quiet).caption


def test_the_plane_shows_the_mean_of_every_cell_that_has_rows(tables: Tables) -> None:
    axes = by_title("plane", tables)["A > 0"]
    (image,) = axes.images
    drawn = np.ma.filled(np.ma.masked_invalid(image.get_array()), np.nan)
    cells = tables["plane"].query("sign == 'A > 0'")
    known = tables["plane"][tables["plane"]["n"] >= 20]
    scale, _ = power_of_ten(known.loc[known["sign"] != "A = 0", "dH"].abs().max())
    for cell in cells.to_dict("records"):
        at = entropy_names().index(cell["entropy"]), probability_names().index(cell["probability"])
        expected = cell["dH"] / scale if cell["n"] >= 20 else np.nan
        np.testing.assert_allclose(drawn[at], expected)
    assert np.isfinite(drawn).sum() == (cells["n"] >= 20).sum()


def test_methods_are_rows_of_what_they_touch_and_of_their_factors(tables: Tables) -> None:
    touched = tables["audit_touched"].set_index(["method", "bin"])["touched"]
    axes = by_title("method_changes", tables)["Sign region"]
    shares = np.asarray(axes.images[0].get_array())
    names = ["steer", "clip_cov ratio=0.02"]  # the reference touches nothing by itself
    np.testing.assert_allclose(shares, [[touched[m, q] for q in QUADRANTS] for m in names])
    found = by_title("factors", tables)
    for factor in FACTORS:
        assert dots(found[factor.capitalize()]) == pytest.approx([0.2, 0.4])
    assert dots(found["All four"]) == [0.5, 0.5]
    grey = [p for p in found["Advantage"].patches]
    assert len(grey) == 2  # steer and clip_cov have it in their formula, grpo has not


def test_scope_panels_are_the_distances_of_methods_that_have_a_statistic(tables: Tables) -> None:
    found = by_title("scope_effect", tables)
    lines = [ln for ln in found["Micro-batches"].get_lines() if len(ln.get_xdata()) == 2]
    assert [list(ln.get_xdata()) for ln in lines] == [[0.05 * d] * 2 for d in (1, 2, 4)]
    assert "so 0: grpo" in make("scope_effect", tables).caption
    still = {k: v.assign(distance=0.0) if k == "audit_scope" else v for k, v in tables.items()}
    assert "no audited method takes a statistic" in str(attempt("scope_effect", still))


def test_layers_targets_and_heldout_means_are_those_of_their_tables(tables: Tables) -> None:
    found = by_title("layer_shares", tables)
    bars = [p.get_width() for p in found["Share of the absolute parts"].patches]
    np.testing.assert_allclose(bars, tables["layers"]["share"])
    along, against = make("entropy_target", tables).figure.axes
    targets, (scale, _) = tables["targets"], power_of_ten(1e-3)
    np.testing.assert_allclose(along.get_lines()[2].get_ydata() * scale, targets["realised"])
    np.testing.assert_allclose(along.get_lines()[0].get_ydata()[0] * scale, -1e-3)
    hollow = against.get_lines()[-1]
    assert len(hollow.get_xdata()) == 1 and hollow.get_markerfacecolor() == "#ffffff"
    means = make("train_heldout", tables).figure.axes[1]
    rows = tables["train_heldout"]
    scale, _ = power_of_ten(rows[["train", "heldout"]].abs().max().max())
    train, heldout = [ln for ln in means.get_lines() if ln.get_marker() in "so"]
    np.testing.assert_allclose(train.get_xdata() * scale, rows["train"])
    np.testing.assert_allclose(heldout.get_xdata() * scale, rows["heldout"])
    labels = [t.get_text() for t in means.get_yticklabels()]
    assert labels[0].startswith(f"all steps: × {rows['ratio'].iloc[0]:.2f} [")


def test_weights_that_do_not_vary_leave_a_sentence_in_place_of_a_panel(tables: Tables) -> None:
    assert set(by_title("weight_collapse", tables)) == {"Tail of |Ω|", "Who is the largest |Ω|"}
    assert "method.name=steer to see" in make("weight_collapse", tables).caption
    steps = tables["weight_steps"].assign(varies=True, pinned=0.5)
    sums = tables["weights"].assign(pinned=0.5, pinned_lo=0.4, pinned_hi=0.6, varying_steps=9)
    moved = tables | {"weight_steps": steps, "weights": sums}
    found = by_title("weight_collapse", moved)
    assert set(found["Weights pinned"].get_lines()[0].get_ydata()) == {0.5}
    np.testing.assert_allclose(found["Tail of |Ω|"].get_lines()[0].get_ydata(), steps["omega_peak"])
    assert "50 % [40, 60] of the weights are pinned" in make("weight_collapse", moved).caption


def test_evaluations_show_each_method_beside_the_baseline(over: Tables) -> None:
    found = by_title("pass_at_k", over)
    data = over["pass_at_k"].query("level == 'method' and step == 12 and benchmark == 'math'")
    data = data[data["method"] == "steer lambda_min=0.5"]
    own = found["steer\nlambda_min=0.5"].get_lines()[-1]  # of the last block, which is math
    np.testing.assert_allclose(own.get_xdata(), data["k"])
    np.testing.assert_allclose(own.get_ydata(), data["pass_at_k"])
    assert "steer\nlambda_min=0.9 (1 seed)" in found
    figure = make("accuracy_entropy", over).figure
    assert [b.get_suptitle() for b in figure.subfigs][-1].startswith("Training entropy")
    curves = over["method_curves"].query("metric == 'entropy' and method == 'grpo'")
    grpo = figure.subfigs[-1].axes[0].get_lines()[-1]
    np.testing.assert_allclose(grpo.get_ydata(), curves["mean"])


def test_benchmarks_have_a_panel_each_a_row_per_arm_and_a_printed_table(over: Tables) -> None:
    found = by_title("benchmarks", over)
    data = over["benchmarks"]
    assert list(found) == ["aime", "math", "average"]
    for title, axes in found.items():
        assert dots(axes) == pytest.approx(list(data[data["benchmark"] == title]["accuracy"]))
    large = data.assign(model="large", accuracy=data["accuracy"] + 0.1)
    both = over | {"benchmarks": pd.concat([data, large])}
    labels = [t.get_text() for t in by_title("benchmarks", both)["aime"].get_yticklabels()]
    assert len(labels) == 6 and labels[3] == "large · grpo"
    table = sheet("benchmarks", both)
    assert table is not None and len(table.cells()) == 6
    row = data[(data["method"] == "grpo") & (data["benchmark"] == "aime")].iloc[0]
    shown = f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_lo']:.1f}, "
    assert table.cells()[0][3].startswith(shown.replace("-", "−"))


def test_a_sweep_has_its_arms_alone_and_where_they_end(over: Tables) -> None:
    found = by_title("lambda_min", over)
    rows = over["methods"].set_index("method").loc[["steer lambda_min=0.5", "steer lambda_min=0.9"]]
    assert dots(found["last entropy"]) == pytest.approx(list(rows["entropy"]))
    labels = [t.get_text() for t in found["last entropy"].get_yticklabels()]
    assert labels == ["lambda_min=0.5", "lambda_min=0.9"]
    assert len(found["Entropy"].get_lines()) == 2
    average = over["benchmarks"].query("benchmark == 'average'").set_index("method")["accuracy"]
    assert dots(found["accuracy"]) == pytest.approx([average[m] for m in rows.index])


def test_estimators_are_rows_over_seeds_where_there_are_several(over: Tables) -> None:
    found = by_title("estimators", over)
    data = over["predictor_seeds"].query("target == 'dH' and kind == 'form' and method == 'grpo'")
    line = next(ln for ln in found["PCC"].get_lines() if ln.get_label() == "grpo (3 seeds)")
    np.testing.assert_allclose(line.get_xdata(), data["pcc"])
    mse = next(ln for ln in found["MSE"].get_lines() if ln.get_label() == "grpo (3 seeds)")
    runs = over["validation"].query("scope == 'within_step' and stratum == 'all'")
    grpo = runs[runs["run"].str.startswith("grpo")].groupby("predictor", sort=False)["mse"].mean()
    np.testing.assert_allclose(mse.get_xdata(), grpo.loc[list(data["predictor"])])
    table = sheet("estimators", over)
    assert table is not None and len(table.cells()) == data.shape[0] * 3


def test_words_show_their_contribution_and_any_text_is_harmless(tables: Tables) -> None:
    words = tables["words"].sort_values("contribution", ascending=False)
    axes = by_title("words", tables)["Adds to the mean dH"]
    scale, _ = power_of_ten(
        words[["contribution", "contribution_lo", "contribution_hi"]].abs().max().max()
    )
    bars = np.array([p.get_width() for p in axes.patches]) * scale
    np.testing.assert_allclose(bars, words["contribution"])
    (lines,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    ends = np.array(lines.get_segments())[:, :, 0] * scale
    np.testing.assert_allclose(ends, words[["contribution_lo", "contribution_hi"]])
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert any("U+202E" in t for t in labels) and any(r"\$x_1\$" in t for t in labels)
    assert all(t.isprintable() for t in labels)
    table = sheet("words", tables)
    assert table is not None and "\x00" not in table.latex() and "\u202e" not in table.markdown()
    part = section(tables, "run")
    assert part is not None and len(part.sentences) == 2 and section(tables, "other") is None
    assert part.sheet.cells() == table.cells()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_token_becomes_a_short_printable_label(text: str) -> None:
    shown = token_text(text, 7)
    assert shown.isprintable() and 0 < len(shown) < 90
    shown.encode("utf-8")
    assert token_text("", 7) == "#7" and token_text(" a\n", 1) == "␣a⏎"
