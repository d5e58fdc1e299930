"""Seeds of the draws, and seeded stretches of code that leave the global state as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run with torch's generators (CPU, and `device` if it is CUDA) at `seed`; restore after."""
    device = torch.device(device)
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        # Not torch.manual_seed: it would reach devices that are not restored here.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def sampling_seed(seed: int, name: str, number: int) -> int:
    """A seed of its own for every draw, so that a resumed run needs no random state."""
    words = [seed, number, *name.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
