"""Which response a row of verl's data is, the same in every epoch over a rollout."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

_RANK_BITS, _ROW_BITS = 12, 20


def prompt_group(names: Sequence[str]) -> Tensor:
    """int64 (B,) of verl's prompt uids: equal for equal names, on every rank."""
    return torch.tensor([_number(n) for n in names], dtype=torch.int64)


def _number(name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Identity:
    """Numbers the responses that one data-parallel rank meets: rollout << 32 | rank << 20 | n.

    n counts the rank's responses in the order in which they are first seen; a response that
    comes again in a later epoch over the same rollout keeps its number.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank % (1 << _RANK_BITS)
        self._rollout, self._seen = 0, {}

    def begin(self, rollout: int) -> None:
        """A new rollout: all responses are new."""
        self._rollout, self._seen = rollout, {}

    def uids(self, keys: Sequence[Hashable]) -> Tensor:
        """int64 (B,) for the rows of one minibatch; equal keys in it are different responses."""
        met: Counter[Hashable] = Counter()
        numbers = []
        for key in keys:
            full = (key, met[key])
            met[key] += 1
            numbers.append(self._seen.setdefault(full, len(self._seen) % (1 << _ROW_BITS)))
        first = self._rollout << 32 | self._rank << _ROW_BITS
        return torch.tensor([first + n for n in numbers], dtype=torch.int64)
