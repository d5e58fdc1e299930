"""Rows of a micro-batch's inputs, whatever container of tensors they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def take_rows(inputs: Any, index: Tensor) -> Any:
    """The responses `index` (B',) of a micro-batch: tensors are indexed along their first axis.

    Works on tensors, mappings, tuples, lists and dataclasses of those; anything else is kept.
    """
    if isinstance(inputs, Tensor):
        return inputs[index.to(inputs.device)] if inputs.ndim else inputs
    if isinstance(inputs, Mapping):
        return {key: take_rows(value, index) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(take_rows(value, index) for value in inputs)
    if is_dataclass(inputs) and not isinstance(inputs, type):
        parts = {f.name: take_rows(getattr(inputs, f.name), index) for f in fields(inputs)}
        return replace(inputs, **parts)
    return inputs


def join_rows(parts: Sequence[Any]) -> Any | None:
    """Micro-batches one after another as one, or None where their layouts differ.

    The same containers as in `take_rows`; tensors must agree in all but their first axis, and
    everything else must be equal.
    """
    try:
        return _join(parts)
    except ValueError:
        return None


def _join(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if any(type(p) is not type(first) for p in parts):
        raise ValueError("kinds differ")
    if isinstance(first, Tensor) and first.ndim:
        if len({(t.dtype, t.device, t.shape[1:]) for t in parts}) > 1:
            raise ValueError("layouts differ")
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        if any(p.keys() != first.keys() for p in parts):
            raise ValueError("keys differ")
        return {key: _join([p[key] for p in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_join(values) for values in zip(*parts, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        named = {f.name: _join([getattr(p, f.name) for p in parts]) for f in fields(first)}
        return replace(first, **named)
    same = (torch.equal(p, first) if isinstance(first, Tensor) else p == first for p in parts)
    if not all(same):
        raise ValueError("values differ")
    return first
