"""OpenRLHF experiences, saved by the user: OpenRLHF 0.11 itself writes no tokens.

One .pt file an optimizer step, its number in the name, holding the tensor fields of an
`Experience` (or a list of such dicts, one a micro-batch); docs/import.md has the two lines that
save them. Per-token fields are (B, A) and belong to the last A tokens of `sequences` (B, S).
OpenRLHF's `action_log_probs` are those of the old policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entropy_lab.adapters.importers.files import floats, integers, need, numbered, torch_dump
from entropy_lab.adapters.importers.response import Response
from entropy_lab.errors import RunError

SOURCE = "OpenRLHF Experience"
LACKS = "entropy (unless saved beside it), dH, weight and grad_logp"
_COLUMNS = {
    "advantage": "advantages",
    "old_logp": "action_log_probs",
    "logp": "action_log_probs",
    "rollout_logp": "rollout_log_probs",
    "entropy": "entropy",
}


def read(folder: Path) -> Iterator[tuple[int, list[Response]]]:
    """(step, responses) of every file."""
    for step, path in numbered(folder, r"(?:.*?)(\d+)\.pt"):
        dump = torch_dump(path)
        batches = dump if isinstance(dump, list) else [dump]
        if not all(isinstance(batch, dict) for batch in batches):
            raise RunError(f"{path} holds no dict of tensors: save vars(experience), see docs")
        yield step, [r for micro, b in enumerate(batches) for r in _responses(b, micro, path)]


def _responses(batch: dict[str, Any], micro: int, path: Path) -> Iterator[Response]:
    sequences, actions = need(batch, "sequences", path), need(batch, "action_mask", path)
    width = actions.shape[1]
    attended = batch.get("attention_mask")
    rewards = batch.get("rewards")
    for i in range(len(sequences)):
        prompt = sequences[i, :-width]
        if attended is not None:
            prompt = prompt[attended[i, :-width].bool()]
        yield Response(
            tokens=integers(sequences[i, -width:]),
            mask=integers(actions[i]).astype(bool),
            prompt_tokens=integers(prompt),
            columns={
                o: floats(batch[t][i]) for o, t in _COLUMNS.items() if batch.get(t) is not None
            },
            micro=micro,
            reward=None if rewards is None else float(rewards[i].float().mean()),
        )
