"""Printed tables: the numbers of their data in LaTeX, Markdown and CSV, and nothing that breaks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from entropy_lab.analysis.audit_tables import FACTORS
from entropy_lab.errors import RunError
from entropy_lab.interventions import INTERVENTIONS
from entropy_lab.plots import sheet, write_sheet
from entropy_lab.plots.factors import FORMULAS
from entropy_lab.plots.sheet import Column, Sheet, number
from made_tables import audited

DATA = pd.DataFrame(
    {"name": ["a_b & 50 %", "x|y\nz"], "n": [1234567, 2], "pcc": [-0.123456, np.nan],
     "pcc_lo": [-0.2, np.nan], "pcc_hi": [0.1, np.nan], "share": [0.5, 1.0], "mse": [1.234e-5, 0.0]}
)  # fmt: skip
COLUMNS = (
    Column("name", "method", "text"), Column("n", "rows", "count"),
    Column("pcc", "PCC", "fixed", True), Column("share", "share", "share"),
    Column("mse", "MSE", "short"),
)  # fmt: skip
TABLE = Sheet(DATA, COLUMNS, "A caption with 95 % & a_b.")


def test_cells_round_and_keep_the_interval_beside_the_number() -> None:
    first, second = TABLE.cells()
    assert first == ["a_b & 50 %", "1,234,567", "−0.12 [−0.20, 0.10]", "50.0 %", "1.23e−05"]
    assert second[2] == "–" and second[3] == "100.0 %"


def test_csv_has_every_number_in_full() -> None:
    read = pd.read_csv(io.StringIO(TABLE.csv()))
    assert list(read.columns) == ["name", "n", "pcc", "pcc_lo", "pcc_hi", "share", "mse"]
    pd.testing.assert_frame_equal(read, DATA[list(read.columns)], check_dtype=False)


def test_markdown_rows_have_as_many_cells_as_the_head() -> None:
    head, rule, *rows, empty, caption = TABLE.markdown().splitlines()
    bars = [line.replace("\\|", "").count("|") for line in (head, rule, *rows)]
    assert len(rows) == 2 and set(bars) == {6} and empty == ""
    assert rule.startswith("|---|---:|") and caption.startswith("A caption")


def test_latex_escapes_what_would_be_read_as_code() -> None:
    text = TABLE.latex()
    assert r"a\_b \& 50 \%" in text and r"$-$0.12 {\scriptsize [$-$0.20, 0.10]}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [line.count(" & ") for line in body] == [4, 4, 4]
    assert text.count("{") == text.count("}") and r"\begin{tabular}{lrrrr}" in text
    assert "−" not in text and "–" not in text


@pytest.mark.parametrize("text", ["\\input{x}", "$a^2$", "%", "{", "~", "\x00", "#"])
def test_a_hostile_name_stays_text(text: str) -> None:
    one = Sheet(pd.DataFrame({"name": [text]}), COLUMNS[:1], "c")
    (line,) = [x for x in one.latex().splitlines() if x.endswith(r" \\") and "method" not in x]
    assert "\\input" not in line and "\x00" not in line
    assert not line.startswith("%") and "$a" not in line.replace("\\$", "")


def test_files_are_written_whole_or_named(tmp_path: Path) -> None:
    paths = write_sheet("t", TABLE, tmp_path / "new")
    assert [p.name for p in paths] == ["t.tex", "t.md", "t.csv"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["t.csv", "t.md", "t.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write t to"):
        write_sheet("t", TABLE, tmp_path / "file" / "below")


def test_the_factor_table_has_the_shares_of_the_audit_and_the_formula() -> None:
    table = sheet("factors", audited())
    assert table is not None
    cells = {row[0]: row for row in table.cells()}
    assert cells["grpo"][1] == "clip" and cells["grpo"][2] == "–"
    assert cells["steer"][1] == ", ".join(FACTORS)
    assert cells["steer"][2:7] == ["0.20 [0.10, 0.30]"] * 4 + ["0.50 [0.40, 0.60]"]
    assert set(FORMULAS) <= set(INTERVENTIONS)


@pytest.mark.parametrize(
    ("value", "show", "text"),
    [(float("nan"), "fixed", "–"), (0.12345, "one", "12.3"), (-3e-7, "short", "−3e−07")],
)
def test_numbers_of_a_table(value: float, show, text: str) -> None:
    assert number(value, show) == text
