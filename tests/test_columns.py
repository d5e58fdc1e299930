"""docs/columns.md and the columns that the code knows are the same; a run has no others.

    python tests/test_columns.py      writes the tables of the page anew
"""

from __future__ import annotations

import re
from pathlib import Path

from entropy_lab import PREDICTORS, load
from entropy_lab.record import schema
from entropy_lab.record.step_columns import EVENT_COLUMNS, METRIC_COLUMNS, STEP_COLUMNS
from entropy_lab.stats import QUADRANTS

PAGE = Path(__file__).parents[1] / "docs" / "columns.md"
_ROW = re.compile(r"^\| `(.+?)` \| (.*?) \| (.*?) \|$", re.M)


def known() -> dict[str, dict[str, tuple[str, str]]]:
    """Heading of the page -> column -> (unit, meaning)."""
    deep = schema.token_schema("full", schema.FULL_PREDICTORS, deep=True)
    tables = {"tokens": deep, "samples": schema.sample_schema(), "evals": schema.eval_schema()}
    found = {
        name: {
            f.name: (f.metadata[b"unit"].decode(), f.metadata[b"meaning"].decode()) for f in table
        }
        for name, table in tables.items()
    }
    return {**found, "steps": STEP_COLUMNS, "metrics": METRIC_COLUMNS, "events": EVENT_COLUMNS}


def shown() -> dict[str, dict[str, tuple[str, str]]]:
    sections = re.split(r"^## (\w+).*$", PAGE.read_text(), flags=re.M)[1:]
    return {
        name: {m[1]: (m[2], m[3]) for m in _ROW.finditer(text)}
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


def table(columns: dict[str, tuple[str, str]]) -> str:
    rows = [f"| `{name}` | {unit} | {meaning} |" for name, (unit, meaning) in columns.items()]
    return "\n".join(["| column | unit | meaning |", "|---|---|---|", *rows])


def test_the_page_and_the_code_know_the_same_columns() -> None:
    page = {name: columns for name, columns in shown().items() if columns}
    assert page == {
        name: {k: (u, m.replace("|", "\\|")) for k, (u, m) in columns.items()}
        for name, columns in known().items()
    }


def spelled(columns: dict[str, tuple[str, str]]) -> re.Pattern[str]:
    """What the names of the page stand for."""
    forms = {
        "<quadrant>": "|".join(QUADRANTS), "<form>": "|".join(PREDICTORS),
        "<path form>": "|".join(schema.PATH_PREDICTORS), "<group>": r"\w+", "<name>": r"\w+",
    }  # fmt: skip
    names = []
    for name in columns:
        for mark, choice in forms.items():
            name = name.replace(mark, f"(?:{choice})")
        names.append(name)
    return re.compile("|".join(names))


def test_a_run_has_no_other_columns(tmp_path: Path) -> None:
    import torch

    from toy import Toy, run_loop

    model = Toy()
    run_loop(
        model, torch.optim.AdamW(model.parameters(), lr=1e-2), tmp_path / "run", held_out=True,
        deep_every=1, floor_every=1,
    )  # fmt: skip
    run = load(tmp_path / "run")
    found = {"steps": run.steps(), "metrics": run.metrics(), "tokens": run.tokens()}
    found["samples"] = run.samples()
    for name, frame in found.items():
        pattern = spelled(known()[name])
        assert [c for c in frame.columns if not pattern.fullmatch(c)] == [], name
    # And those that a loop has without being asked for anything are all there.
    optional = ("rollout", "grad_norm", "method_<name>", "probe_failed", "float32_rows", "rounding",
                "dH_float32", "dH_float32_same")  # fmt: skip
    for name in set(STEP_COLUMNS) - set(optional):
        assert any(spelled({name: ("", "")}).fullmatch(c) for c in found["steps"]), name


def write() -> None:
    text, sections = "", re.split(r"(?=^## )", PAGE.read_text(), flags=re.M)
    for section in sections:
        heading = re.match(r"## (\w+)", section)
        if heading:
            columns = known()[heading[1]]
            escaped = {k: (u, m.replace("|", "\\|")) for k, (u, m) in columns.items()}
            above = section.split("\n|")[0].rstrip()
            section = f"{above}\n\n{table(escaped)}\n\n"
        text += section
    PAGE.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    write()
