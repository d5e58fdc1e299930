"""The registry of figures: names, captions, files, errors, and every figure in one go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from entropy_lab.analysis import analyze
from entropy_lab.analysis.store import write_tables
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.plots import PLOTS, attempt, draw, make, names_of
from entropy_lab.plots.everything import draw_all, index, prepared
from entropy_lab.plots.lacking import Lacking
from entropy_lab.plots.reading import gathered
from entropy_lab.plots.style import add_caption, theme
from made_tables import Tables, aimed, audited, layered, one_run, replayed, several_runs
from synthetic import write_run

SWEEPS = ("lambda_min=0.5", "clip_low=0.99", "mapping=1", "scope=1")
# What stands in a caption for what is resampled, where it is not steps and prompt groups.
UNITS = {
    "entropy_reward": "the run", "drift": "the run is the unit", "replay": "over replay points",
    **dict.fromkeys(("layer_shares", "train_heldout", "entropy_target", "weight_collapse",
                     "factors", "method_changes", "scope_effect", "estimators"),
                    "bootstrap over steps"),
    **dict.fromkeys(("methods_curves", "methods_summary", "benchmarks", "pass_at_k",
                     "accuracy_entropy", "lambda_min", "mapping", "clip_sweep", "scope_runs",
                     "extreme_clipping"), "bootstrap over seeds within a"),
}  # fmt: skip
# The figures of what is measured as dH say how well it is known.
OF_DH = ("change_distribution", "predicted_vs_actual", "train_heldout", "words", "plane")


@pytest.fixture(autouse=True)
def light() -> Iterator[None]:
    with theme("light"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plots") / "run"
    one_run(path, steps=8)
    return path


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows in every table that a figure reads."""
    runs = tmp_path_factory.mktemp("runs")
    arms = {"grpo": 3, "steer": 2} | {f"steer {s}": 2 for s in SWEEPS}
    over = several_runs(runs, arms, probed=False)
    single = {k: v for k, v in one_tables(run).items() if k not in over or over[k].empty}
    made = audited() | aimed() | layered() | replayed()
    target = tmp_path_factory.mktemp("tables")
    write_tables(target, over | single | made)
    return target


def one_tables(run: Path) -> Tables:
    return analyze([run]).tables


@pytest.fixture(scope="module")
def tables(folder: Path) -> Tables:
    (found,) = gathered(sorted({t for p in PLOTS.values() for t in p.needs}), (), [folder])
    return found


@pytest.mark.parametrize("name", PLOTS)
def test_captions_say_how_many_rows_what_is_resampled_and_the_floor(
    tables: Tables, name: str
) -> None:
    with mpl.rc_context({"font.family": "DejaVu Sans Mono"}):  # comes with matplotlib; it is wide
        drawing = make(name, {table: tables[table] for table in PLOTS[name].needs})
        add_caption(drawing)
        text = drawing.figure.texts[-1]
        right = text.get_window_extent().x1 / drawing.figure.dpi
        assert right <= drawing.figure.get_figwidth()
    caption = drawing.caption
    assert "$" not in caption  # it is plain text in the report
    assert "n = " in caption
    assert UNITS.get(name, "two-stage bootstrap: steps, then prompt") in caption
    if PLOTS[name].items or name in OF_DH:
        assert "loor" in caption or name in ("regions", "quadrants")


def test_every_item_of_the_paper_has_one_figure() -> None:
    items = [item for plot in PLOTS.values() for item in plot.items]
    tables = {f"T{i}" for i in range(1, 13)} - {"T7"}
    figures = {f"F{i}" for i in (*range(1, 9), 15, 18, 19, 20)}
    assert sorted(items) == sorted(tables | figures)
    printed = {item for plot in PLOTS.values() if plot.tabulate for item in plot.items}
    assert tables <= printed
    assert names_of("t2") == ["factors"] and names_of("F15") == ["accuracy_entropy"]
    assert names_of("all") == list(PLOTS)
    assert all(plot.title.endswith(".") for plot in PLOTS.values())


@pytest.mark.parametrize(("name", "files"), [("quadrants", 2), ("lambda_min", 5)])
def test_files_embed_their_fonts_and_are_no_empty_pages(
    folder: Path, tmp_path: Path, name: str, files: int
) -> None:
    paths = draw(name, folder, tmp_path)
    assert [p.suffix for p in paths] == [".pdf", ".png", ".tex", ".md", ".csv"][:files]
    assert b"/FontFile2" in paths[0].read_bytes()  # TrueType, not Type 3
    with Image.open(paths[1]) as image:
        assert image.width > 1000
        colours = image.convert("RGB").getcolors(2**24)
    assert colours is not None and len(colours) > 20


def test_equal_tables_give_equal_files(folder: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        draw("quadrants", folder, tmp_path / out, ("pdf", "svg"))
    for ending in ("pdf", "svg"):
        one, two = (tmp_path / f / f"quadrants.{ending}" for f in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_the_replay_figure_shows_the_paired_differences(tables: Tables) -> None:
    own = make("replay", tables).figure.axes[0]
    assert [t.get_text() for t in own.get_yticklabels()] == ["b", "c"]  # sorted, no baseline
    points = [line.get_xdata()[0] for line in own.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(points, [-1.0, 0.15])  # of 1e-3 nats


def test_one_go_tells_each_step_and_lists_what_is_missing(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    done = draw_all([run], tmp_path, ["train_heldout", "factors"], said.append)
    assert [bool(one.paths) for one in done] == [True, False]
    assert said[0].startswith("[1/2, ") and "train_heldout.pdf, train_heldout.png" in said[0]
    assert "factors (T2): skipped, " in said[1] and "`entropy-lab audit RUN_DIR`" in said[1]
    text = (tmp_path / "index.md").read_text()
    assert text == index(done) and "[png](train_heldout.png)" in text
    assert "| factors (T2) |" in text and "| audit |" in text
    with pytest.raises(RunError, match="has no audit.parquet"):
        draw_all([run], tmp_path, ["factors"])


def test_runs_are_analyzed_where_they_are_not_and_compared_where_there_are_several(
    tmp_path: Path,
) -> None:
    for seed in range(2):
        write_run(tmp_path / f"r{seed}", steps=6, seed=seed, probed=False)
    said: list[str] = []
    runs, out = [tmp_path / "r0", tmp_path / "r1"], tmp_path / "out"
    assert prepared(runs[:1], out, said.append) == runs[:1]
    assert (runs[0] / "analysis" / "summary.parquet").exists() and len(said) == 1
    assert prepared(runs, out, said.append) == [out / "tables", runs[0]]
    assert "analyzing 2 runs together" in said[1]
    beside = analyze(runs).out
    assert prepared(runs, out, said.append) == [beside, runs[0]] and len(said) == 2
    assert prepared([beside], out) == [beside]


def test_several_folders_add_up_runs_and_never_mix_comparisons(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "other", steps=6)
    analyze([tmp_path / "other"])
    (found,) = gathered(["regions"], (), [run, tmp_path / "other", run])
    assert list(dict.fromkeys(found["regions"]["run"])) == ["run", "other"]
    assert not found["regions"].duplicated().any()  # a run that is given twice is one run
    twice = list(gathered(["methods", "method_curves"], ("benchmarks",), [run, folder, folder]))
    assert len(twice) == 2 and all("benchmarks" in t for t in twice)


def test_errors_name_the_figure_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown figure 'quadrant': did you mean 'quadrants'"):
        draw("quadrant", tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="unknown figure 'F16': .* items of the paper: T1, T8"):
        names_of("F16")
    write_run(tmp_path / "run", steps=3, probed=False)
    with pytest.raises(RunError, match="is not analyzed yet: run `entropy-lab analyze"):
        draw("quadrants", tmp_path / "run", tmp_path)
    analyze([tmp_path / "run"])
    with pytest.raises(Lacking, match="needs rows in quadrants.parquet and it has none: the log"):
        draw("quadrants", tmp_path / "run", tmp_path)
    with pytest.raises(RunError, match="has no methods.parquet: make it .* of several runs"):
        draw("methods_summary", tmp_path / "run", tmp_path)
    assert "record it with: entropy-lab train" in str(attempt("quadrants", {}))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write entropy_reward"):
        draw("entropy_reward", tmp_path / "run", tmp_path / "file" / "below")


def test_a_sweep_needs_two_arms_that_differ_in_its_setting(tables: Tables) -> None:
    methods = tables["methods"]
    grpo = tables | {"methods": methods[methods["method"] == "grpo"]}
    assert "no two runs differ in lambda_min" in str(attempt("lambda_min", grpo))
    mild = methods[~methods["method"].str.contains("0.99|clip_high=5")]
    found = attempt("extreme_clipping", tables | {"methods": mild})
    assert "with clip_low=0.99 and clip_high=5 among them" in str(found)
