"""A cap on the memory of the probe's passes, and what counts as having met it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class OverCapError(MemoryError):
    """A pass used more memory than the probe was allowed."""


class MemoryCap:
    """Lets the passes of a probe raise the memory of the process by so much and no more.

    gb: the passes together may make the allocator take at most so many 1e9 bytes more from the
    device (what it keeps for reuse between them is there for the training too); fraction: nothing
    more is taken beyond this share of the device. On CUDA the allocator enforces both while a pass
    runs, and its own limit is put back afterwards. On a CPU the peak of the process is looked at
    when a pass has ended, so the cap is noticed and not enforced; fraction has no meaning there.
    ValueError for values that are none.
    """

    def __init__(self, gb: float | None, fraction: float | None, device: torch.device):
        if gb is not None and not gb > 0:
            raise ValueError(f"max_memory_gb must be above 0, got {gb}")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"memory_fraction must be in (0, 1], got {fraction}")
        if fraction is not None and device.type != "cuda":
            raise ValueError(
                f"memory_fraction is a share of a CUDA device, and the model is on {device.type}: "
                "use max_memory_gb"
            )
        self._bytes = None if gb is None else int(gb * 1e9)
        self._fraction, self._device = fraction, device
        self._grown = 0  # what the passes have made the allocator take so far

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Raises OverCapError or torch.OutOfMemoryError where the cap is met."""
        if self._bytes is None and self._fraction is None:
            yield
        elif self._device.type == "cuda":
            with self._limited():
                yield
        else:
            before = peak_bytes()
            yield
            grown = peak_bytes() - before
            if self._bytes is not None and grown > self._bytes:
                raise OverCapError(
                    f"a pass of the probe took {grown / 1e9:.2f} GB and max_memory_gb is "
                    f"{self._bytes / 1e9:g}"
                )

    @contextmanager
    def _limited(self) -> Iterator[None]:
        cuda, device = torch.cuda, self._device
        whole = cuda.get_device_properties(device).total_memory
        own = cuda.get_per_process_memory_fraction(device)
        before = cuda.memory_reserved(device)
        if before < self._grown:  # somebody has emptied the cache
            self._grown = 0
        share = min(own, 1.0 if self._fraction is None else self._fraction)
        if self._bytes is not None:
            share = min(share, (before - self._grown + self._bytes) / whole)
        cuda.set_per_process_memory_fraction(share, device)
        try:
            yield
        finally:
            cuda.set_per_process_memory_fraction(own, device)
            self._grown += max(0, cuda.memory_reserved(device) - before)


def peak_bytes() -> int:
    """The most main memory that this process has held so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or in main memory (a RuntimeError of torch's)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SIGNS)


def release_memory() -> None:
    """Give what nobody refers to any more back: frames of an error keep tensors in cycles."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
