"""The order of training problems: epochs of seeded permutations, a function of the position."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Order:
    """Which row stands at each position of an endless stream over several files.

    sizes: rows of each file; weights: how often each row of a file comes up in an epoch. A file
    is gone through again and again, each time in a new permutation, and an epoch takes the next
    round(weight x rows) of them (at least one) from every file, shuffled together: without
    weights, an epoch is one permutation of all rows. shuffle False: rows and files as they stand.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    shuffle: bool = True

    @property
    def takes(self) -> tuple[int, ...]:
        """Rows of each file in an epoch."""
        pairs = zip(self.sizes, self.weights, strict=True)
        return tuple(max(1, round(size * weight)) for size, weight in pairs)

    @property
    def epoch(self) -> int:
        """Rows in an epoch."""
        return sum(self.takes)

    def rows(self, seed: str, first: int, n: int) -> list[int]:
        """The n rows at positions first, first + 1, ..., counted over all files in their order."""
        found = []
        for position in range(first, first + n):
            epoch, within = divmod(position, self.epoch)
            found.append(int(_epoch(self, seed, epoch)[within]))
        return found


@lru_cache(maxsize=4)
def _epoch(order: Order, seed: str, epoch: int) -> NDArray[np.int64]:
    rows, start = [], 0
    for file, (size, take) in enumerate(zip(order.sizes, order.takes, strict=True)):
        at = epoch * take
        while at < (epoch + 1) * take:
            turn, within = divmod(at, size)
            until = min(size, within + (epoch + 1) * take - at)
            turned = _permutation(size, f"{seed} file {file} turn {turn}", order.shuffle)
            rows += [start + row for row in turned[within:until]]
            at += until - within
        start += size
    mixed = _permutation(len(rows), f"{seed} epoch {epoch}", order.shuffle)
    return np.array(rows, np.int64)[np.array(mixed, np.int64)]


def _permutation(n: int, seed: str, shuffle: bool) -> Sequence[int]:
    rows = list(range(n))
    if shuffle:
        random.Random(seed).shuffle(rows)
    return rows
