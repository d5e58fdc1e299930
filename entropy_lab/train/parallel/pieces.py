"""Tensors of which every rank has a piece, put together and cut."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")


def whole_on_host(tensor: Any, keep: bool) -> Tensor:
    """The whole of a DTensor in main memory; empty where it is not to be kept."""
    whole = tensor.full_tensor()
    return whole.cpu() if keep else whole[:0].cpu()


def own_part(whole: Tensor, like: Any) -> Tensor:
    """The DTensor of a whole tensor that lies as the DTensor `like` does, cut without messages."""
    from torch.distributed.tensor import DTensor

    mesh = like.device_mesh
    part = chunk(whole, mesh.get_local_rank(), mesh.size()).to(like.device)
    return DTensor.from_local(
        part, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def chunk(tensor: Tensor, rank: int, size: int) -> Tensor:
    """The rows of a whole tensor that FSDP2 gives to a rank, in memory of their own."""
    parts = tensor.chunk(size, dim=0)
    return parts[rank].clone() if rank < len(parts) else tensor[:0].clone()
