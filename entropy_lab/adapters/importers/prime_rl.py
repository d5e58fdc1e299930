"""prime-rl token exports: token_exports/step_N/rank_R.jsonl, one sequence a line.

Written with `enable_token_export`; lists of a line are aligned with its token_ids (prompt and
response). The trainer's ratio is to the inference engine's log-probabilities, so these are
old_logp and rollout_logp both. Entropy is that of the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from entropy_lab.adapters.importers.files import floats, integers, json_lines, need, numbered
from entropy_lab.adapters.importers.response import Response
from entropy_lab.types import CLIPPED_HIGH, CLIPPED_LOW

SOURCE = "prime-rl enable_token_export"
LACKS = "dH, weight and grad_logp: the export is of before the update"
_COLUMNS = {
    "advantage": "advantages",
    "old_logp": "inference_logprobs",
    "rollout_logp": "inference_logprobs",
    "logp": "trainer_logprobs",
    "entropy": "entropy",
}


def read(folder: Path) -> Iterator[tuple[int, list[Response]]]:
    """(step, responses) of every exported step; sequences without a trained token are left out."""
    files = numbered(folder, r"(?:.*/)?step_(\d+)/rank_\d+\.jsonl")
    for step in sorted({number for number, _ in files}):
        yield (
            step,
            [
                response
                for number, path in files
                if number == step
                for row in json_lines(path)
                if (response := _response(row, path)) is not None
            ],
        )


def _response(row: dict[str, Any], path: Path) -> Response | None:
    ids = integers(need(row, "token_ids", path))
    mask = np.asarray(need(row, "loss_mask", path), bool)
    if not mask.any():
        return None
    start = int(np.argmax(mask))  # the prompt ends where training begins
    columns = {ours: floats(row[name])[start:] for ours, name in _COLUMNS.items() if row.get(name)}
    rewards = floats(row.get("rewards") or [])
    known = rewards[~np.isnan(rewards)]
    return Response(
        tokens=ids[start:],
        mask=mask[start:],
        prompt_tokens=ids[:start],
        columns={n: v for n, v in columns.items() if not np.isnan(v).all()},
        flags=_flags(row, len(ids))[start:],
        micro=int(row.get("micro_step") or 0),
        reward=float(known[-1]) if len(known) else None,
    )


def _flags(row: dict[str, Any], size: int) -> np.ndarray:
    flags = np.zeros(size, np.uint8)
    for name, bit in (("is_masked_high", CLIPPED_HIGH), ("is_masked_low", CLIPPED_LOW)):
        marks = row.get(name) or [None] * size
        flags |= np.where([bool(m) for m in marks], bit, 0).astype(np.uint8)
    return flags
