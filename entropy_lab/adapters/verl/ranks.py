"""What the ranks of one verl engine tell each other, over the default process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def world_rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def largest(values: Sequence[int], device: torch.device | str = "cpu") -> list[int]:
    """The largest of each value over all ranks, which call it with equally many.

    device: where the backend takes tensors.
    """
    if world_size() == 1:
        return list(values)
    found = torch.tensor(list(values), dtype=torch.int64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.tolist()


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in the order of ranks, on all of them."""
    if world_size() == 1:
        return [value]
    found = [None] * world_size()
    dist.all_gather_object(found, value)
    return found
