"""NeMo-RL: exp_*/train_data_stepN.jsonl, one response a line.

prev_logprobs are the policy's before the update (old_logp, and logp of the rollout's first step),
generation_logprobs the engine's. It logs no entropy of the vocabulary: `approx_entropy` is an
importance-weighted sampled negative log-probability and is refused as entropy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from entropy_lab.adapters.importers.files import (
    floats,
    integers,
    json_lines,
    need,
    number,
    numbered,
)
from entropy_lab.adapters.importers.response import Response

SOURCE = "NeMo-RL train_data_step*.jsonl"
LACKS = "entropy (approx_entropy is a sampled NLL, refused), dH, weight and grad_logp"
_COLUMNS = {
    "advantage": "advantages",
    "old_logp": "prev_logprobs",
    "logp": "prev_logprobs",
    "rollout_logp": "generation_logprobs",
}


def read(folder: Path) -> Iterator[tuple[int, list[Response]]]:
    """(step, responses) of every file."""
    for step, path in numbered(folder, r"(?:.*/)?train_data_step(\d+)\.jsonl"):
        yield step, [_response(row, path) for row in json_lines(path)]


def _response(row: dict[str, Any], path: Path) -> Response:
    text = row.get("content")
    text = text if isinstance(text, str) else None
    reward = number(row.get("filtered_rewards", row.get("rewards")))
    if row.get("token_ids") is None:  # logged without tokens: text and reward are all there is
        return Response(reward=reward, response=text)
    ids = integers(row["token_ids"])
    length = int(number(row.get("input_lengths")) or len(ids))  # padding follows
    mask = integers(need(row, "token_loss_mask", path))[:length] > 0
    start = int(np.argmax(mask)) if mask.any() else length
    if number(row.get("sample_loss_mask", 1.0)) == 0:
        mask = np.zeros_like(mask)
    columns = {
        o: _per_token(row[t], len(ids)) for o, t in _COLUMNS.items() if row.get(t) is not None
    }
    return Response(
        tokens=ids[start:length],
        mask=mask[start:],
        prompt_tokens=ids[:start],
        columns={name: values[start:length] for name, values in columns.items()},
        reward=reward,
        response=text,
    )


def _per_token(values: Any, size: int) -> np.ndarray:
    """A list as long as the sequence, or one number for all of it."""
    if isinstance(values, (int, float)) or len(values) == 1:
        return np.full(size, number(values), np.float32)
    return floats(values)
