"""Which code computes the sums: Triton kernels on a CUDA device, plain torch elsewhere."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


def _kernels(*tensors: Tensor) -> ModuleType | None:
    """The Triton kernels where they serve these tensors, or None: torch does without them."""
    if any(t.device.type != "cuda" or t.dtype == torch.float64 for t in tensors):
        return None
    try:
        from entropy_lab.stats import kernels
    except ModuleNotFoundError:  # a build of torch without triton
        return None
    return kernels
