"""Micro-batches as plain named tensors and back, for checkpoints and replay points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from entropy_lab.train.layout import Widths
from entropy_lab.train.policy import Inputs, Micro
from entropy_lab.types import TokenBatch

_INPUTS = ("input_id", "seen", "position", "token_id")
_JOINED = ("input_id", "seen", "position")  # (B, P+T); what else has two axes is (B, T)
_BATCH = ("mask", "advantage", "old_logp", "old_entropy", "rollout_logp", "rollout_weight",
          "state", "uid", "group", "reward", "truncated")  # fmt: skip


def pack(micros: list[Micro], name: str) -> dict[str, Tensor]:
    """Micro-batches of one rollout as tensors NAME.field, for a checkpoint.

    Rows are padded to the widest micro-batch; NAME.layout (M, 3) has the rows, prompt and response
    width of each, so that `unpack` gives the very tensors back.
    """
    layout = torch.tensor([m.widths() for m in micros])
    _, prompt, response = layout.max(0).values.tolist()
    packed = {f"{name}.layout": layout}
    for key in (*_INPUTS, *_BATCH):
        parts = []
        for m in micros:
            value = getattr(m.inputs if key in _INPUTS else m.batch, key)
            if value is None:
                break
            left = prompt - m.widths().prompt if key in _JOINED else 0
            right = response - m.widths().response
            parts.append(pad(value, (left, right)) if value.ndim == 2 else value)
        else:
            packed[f"{name}.{key}"] = torch.cat(parts)
    return packed


def unpack(
    tensors: dict[str, Tensor], name: str, size: int, *, age: int = 0, step: int = 0, seed: int = 0
) -> list[Micro]:
    """What `pack` was given. size: responses of a micro-batch where no layout was stored, which
    earlier versions did not do: all were equally wide."""
    mine = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    count, response = mine["token_id"].shape
    prompt = mine["input_id"].shape[1] - response
    stored = mine.get("layout")
    if stored is None:
        each = [min(size, count - a) for a in range(0, count, size)]
        stored = torch.tensor([(rows, prompt, response) for rows in each])
    micros, first = [], 0
    for sizes in stored.tolist():
        widths = Widths(*sizes)
        rows = slice(first, first + widths.rows)
        joined = slice(prompt - widths.prompt, prompt + widths.response)
        part = {}
        for k in mine.keys() - {"layout"}:
            value, columns = mine[k], joined if k in _JOINED else slice(widths.response)
            part[k] = (value[rows, columns] if value.ndim == 2 else value[rows]).contiguous()
        fields: dict[str, Any] = {k: part[k] for k in _BATCH if k in part}
        batch = TokenBatch(token_id=part["token_id"], **fields, age=age, step=step, seed=seed)
        micros.append(Micro(Inputs(**{k: part[k] for k in _INPUTS}), batch))
        first = rows.stop
    return micros
