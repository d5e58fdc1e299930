"""verl rollout dumps: trainer.rollout_data_dir/N.jsonl, one response a line, text only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entropy_lab.adapters.importers.files import json_lines, need, number, numbered
from entropy_lab.adapters.importers.response import Response

SOURCE = "verl trainer.rollout_data_dir"
LACKS = "all token columns: verl dumps text and score (instrument the run with adapters.verl)"


def read(folder: Path) -> Iterator[tuple[int, list[Response]]]:
    """(global step, responses) of every file."""
    for step, path in numbered(folder, r"(\d+)\.jsonl"):
        yield step, [_response(row, path) for row in json_lines(path)]


def _response(row: dict[str, Any], path: Path) -> Response:
    return Response(
        prompt=str(need(row, "input", path)),
        response=str(need(row, "output", path)),
        reward=number(need(row, "score", path)),
    )
