"""All problems of a path of the settings, with a count of every row that was left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks.base import Encode, Problem
from entropy_lab.train.tasks.data.code_rows import code_layout, standard_row
from entropy_lab.train.tasks.data.files import read_rows
from entropy_lab.train.tasks.data.find import data_files, data_name
from entropy_lab.train.tasks.data.rows import ANSWERS, PROMPTS, Keys, first_present, problem_of

_NAMED = 10  # bad rows in an error or a line
_KEPT = 1000  # bad rows in run.json
_SURE = 3  # names in ANSWERS that mean a ground truth; the others are also names of solutions


@dataclass(frozen=True)
class Reading:
    """How files are read: the settings of the task "data" that have to do with rows."""

    prompt_key: str = ""
    answer_key: str = ""
    source_key: str = "data_source"
    extra_key: str = "extra_info"
    chat: bool = False
    suffix: str = ""
    max_prompt_tokens: int = 0
    bad_rows: Literal["refuse", "skip"] = "refuse"


@dataclass
class Loaded:
    """The problems of one path; bad: (file, row, why) of rows that cannot be used."""

    path: str
    name: str
    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    overlong: int = 0
    bad: list[tuple[str, int, str]] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What run.json keeps."""
        return {
            "path": self.path,
            "rows": self.rows,
            "used": len(self.problems),
            "overlong": self.overlong,
            "bad": len(self.bad),
            "bad_rows": [list(entry) for entry in self.bad[:_KEPT]],
        }


def load_data(path: str, reading: Reading, encode: Encode) -> Loaded:
    """Read, check and, with reading.max_prompt_tokens, measure every row at `path`.

    Raises ConfigError for files that cannot be read or have no prompts or answers, for bad rows
    where these are refused, and where nothing is left.
    """
    found = Loaded(path, data_name(path))
    for file in data_files(path):
        _add_file(found, file, reading)
    if found.bad and reading.bad_rows == "refuse":
        raise ConfigError(
            f'{path}: {named(found)}; correct them, or leave them out with task.bad_rows = "skip"'
        )
    if not found.problems:
        why = f": {named(found)}" if found.bad else ""
        raise ConfigError(f"{path} holds no problem{why}")
    _cut(found, reading.max_prompt_tokens, encode)
    return found


def named(found: Loaded) -> str:
    """Which rows are bad, and why, in one line: the first few of them."""
    several = len({file for file, _, _ in found.bad}) > 1
    shown = [
        f"{f'{Path(file).name} ' if several else ''}row {row} ({why})"
        for file, row, why in found.bad[:_NAMED]
    ]
    more = f" and {len(found.bad) - _NAMED:,} more" if len(found.bad) > _NAMED else ""
    return (
        f"{len(found.bad):,} of {found.rows:,} rows cannot be used: {', '.join(shown)}{more} "
        "(the first row is 1)"
    )


def _add_file(found: Loaded, file: Path, reading: Reading) -> None:
    rows = list(read_rows(file))
    records = [row for _, row in rows if isinstance(row, dict)]
    layout = None
    if not reading.answer_key and first_present(records, ANSWERS[:_SURE]) is None:
        layout = code_layout(records)
    if layout is not None:
        rows = [(n, standard_row(r, layout) if isinstance(r, dict) else r) for n, r in rows]
        records = [row for _, row in rows if isinstance(row, dict)]
    keys = Keys(
        _column(records, "prompt", reading.prompt_key, PROMPTS, file),
        _column(records, "answer", reading.answer_key, ANSWERS, file),
        reading.source_key,
        reading.extra_key,
        reading.chat,
        reading.suffix,
    )
    found.rows += len(rows)
    for number, row in rows:
        made = row if isinstance(row, str) else problem_of(row, keys, found.name)
        if isinstance(made, str):
            found.bad.append((str(file), number, made))
        else:
            found.problems.append(made)


def _column(
    records: list[dict[str, Any]], what: str, asked: str, usual: tuple[str, ...], file: Path
) -> str:
    tried = (asked,) if asked else usual
    key = first_present(records, tried)
    if key is None and records:
        columns = list(dict.fromkeys(name for row in records for name in row))
        raise ConfigError(
            f"{file} has no {what} in {', '.join(map(repr, tried))}: its columns are "
            f"{', '.join(columns)}; name one with task.{what}_key"
        )
    return key or tried[0]


def _cut(found: Loaded, most: int, encode: Encode) -> None:
    """Leave out prompts of more than `most` tokens (0: none)."""
    if not most:
        return
    kept = [p for p in found.problems if len(encode(p.prompt)) <= most]
    found.overlong = len(found.problems) - len(kept)
    if not kept:
        raise ConfigError(
            f"{found.path}: all {found.overlong:,} prompts have more than task.max_prompt_tokens = "
            f"{most} tokens: raise it"
        )
    found.problems = kept
