"""slime dumps: the .pt files of --save-debug-train-data (and --dump-details).

format_version 2 holds `samples`, one dict a response; the older form holds `rollout_data`, one
list a field and file, one file a rank. log_probs and entropy are of the policy before the
rollout's first step; a step of the imported run is one rollout.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entropy_lab.adapters.importers.files import (
    floats,
    integers,
    need,
    number,
    numbered,
    torch_dump,
)
from entropy_lab.adapters.importers.response import Response
from entropy_lab.errors import RunError

SOURCE = "slime --save-debug-train-data"
LACKS = "dH, weight, grad_logp, and the later steps of a rollout: the dump is of before the update"
# Ours: theirs; per token of the response.
_COLUMNS = {
    "advantage": "advantages",
    "old_logp": "log_probs",
    "logp": "log_probs",
    "entropy": "entropy",
    "rollout_logp": "rollout_log_probs",
}
_PER_RESPONSE = ("tokens", "response_lengths", "loss_masks", "rewards", *_COLUMNS.values())


def read(folder: Path) -> Iterator[tuple[int, list[Response]]]:
    """(rollout, responses) of every dumped rollout, all ranks together."""
    files = numbered(folder, r"(?:.*?)(\d+)(?:_\d+)?\.pt")
    rollouts: dict[int, list[Response]] = {}
    for named, path in files:
        dump = torch_dump(path)
        if not isinstance(dump, dict):
            raise RunError(f"{path} is no slime dump: it holds a {type(dump).__name__}")
        rollout = int(dump.get("rollout_id", named))
        rollouts.setdefault(rollout, []).extend(_responses(dump, path))
    yield from sorted(rollouts.items())


def _responses(dump: dict[str, Any], path: Path) -> Iterator[Response]:
    if "samples" in dump:
        rows = dump["samples"]
    else:
        data = need(dump, "rollout_data", path)
        count = len(need(data, "tokens", path))
        names = [n for n in _PER_RESPONSE if data.get(n) is not None and len(data[n]) == count]
        rows = [{name: data[name][i] for name in names} for i in range(count)]
    for row in rows:
        yield _response(row, path)


def _response(row: dict[str, Any], path: Path) -> Response:
    ids = integers(need(row, "tokens", path))
    length = int(need(row, "response_lengths", path))
    columns = {o: floats(row[t])[:length] for o, t in _COLUMNS.items() if row.get(t) is not None}
    masks = row.get("loss_masks")
    return Response(
        tokens=ids[len(ids) - length :],
        mask=None if masks is None else integers(masks).astype(bool),
        prompt_tokens=ids[: len(ids) - length],
        columns=columns,
        reward=number(row.get("rewards")),
        truncated=None if row.get("truncated") is None else bool(row["truncated"]),
    )
