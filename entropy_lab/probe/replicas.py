"""Replicas of a model that take one step together (DistributedDataParallel), one in each process.

Each process records its own micro-batches and writes their rows, tokens/rank=0001 and so on. The
loss of the step is the mean of theirs, which is what DDP makes of the gradients. What is said of
the whole step is counted by rank 0, to which the others send theirs after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from entropy_lab.errors import RunError
from entropy_lab.probe.scorer import Score
from entropy_lab.probe.step import StepMeasurement
from entropy_lab.probe.window import Probed, Window
from entropy_lab.types import TokenBatch, TokenStats


class Replicas(NamedTuple):
    """This process among those that step together; (0, 1) where it is alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, model: nn.Module) -> Replicas:
        """Several where `model` is wrapped in DDP; each process of other models is a run."""
        if isinstance(model, DistributedDataParallel):
            return cls(dist.get_rank(model.process_group), dist.get_world_size(model.process_group))
        return cls()

    def micro(self, index: int) -> int:
        """The number, within the step, of the index-th micro-batch of this process."""
        return index * self.size + self.rank

    def first_uid(self, step: int) -> int:
        """Where the numbers of responses that have none of their own begin."""
        return (step << 32) + (self.rank << 20)

    def first(self, action: Callable[[], object]) -> None:
        """Run `action` on rank 0 while the others wait; its RunError is raised on all of them."""
        if self.size == 1:
            action()
            return
        said = [""]
        if self.rank == 0:
            try:
                action()
            except RunError as error:
                said = [str(error)]
        dist.broadcast_object_list(said)
        if said[0]:
            raise RunError(said[0])


def wrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP; itself where it is not wrapped."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def apart(score: Score, model: nn.Module) -> Score:
    """`score` without the messages that a forward pass through DDP sends, and without a trace of
    it in what DDP does at the next one."""
    if not isinstance(model, DistributedDataParallel):
        return score

    def alone(inputs: Any) -> TokenStats:
        with _silent(model):
            return score(inputs)

    return alone


@contextmanager
def _silent(model: DistributedDataParallel) -> Iterator[None]:
    names = ("require_forward_param_sync", "require_backward_grad_sync")
    own = {name: getattr(model, name) for name in names}
    try:
        for name in names:
            setattr(model, name, False)
        yield
    finally:
        for name, value in own.items():
            setattr(model, name, value)


@dataclass(frozen=True)
class Recorded:
    """The tokens of a step, as far as its row of steps needs them; picklable, on the CPU."""

    tokens: TokenBatch
    before: TokenStats
    per: dict[str, Tensor]  # weight and flags, (B, T)
    predicted: dict[str, Tensor]
    parts: dict[str, list[Probed]]  # train and held

    @classmethod
    def of(cls, m: StepMeasurement, window: Window, predicted: Mapping[str, Tensor]) -> Recorded:
        """Nothing but tensors on the CPU; the inputs of the model stay behind."""

        def plain(p: Probed) -> Probed:
            assert p.after is not None
            batch, before, after = (x.map(Tensor.cpu) for x in (p.batch, p.before, p.after))
            kept = replace(p, batch=batch, before=before, after=after, inputs=None, source=None)
            return replace(kept, rows=None)

        return cls(
            window.batch().map(Tensor.cpu),
            window.stats().map(Tensor.cpu),
            {name: window.per_token(name).cpu() for name in ("weight", "flags")},
            {name: value.cpu() for name, value in predicted.items()},
            {name: [plain(p) for p in getattr(m, name)] for name in ("train", "held")},
        )

    def batch(self) -> TokenBatch:
        return self.tokens

    def stats(self) -> TokenStats:
        return self.before

    def per_token(self, name: str) -> Tensor:
        return self.per[name]

    @classmethod
    def joined(cls, ranks: list[Recorded]) -> Recorded:
        """Those of several ranks as one."""
        width = max(r.tokens.mask.shape[1] for r in ranks)

        def cat(values: list[Tensor]) -> Tensor:
            return torch.cat([nn.functional.pad(v, (0, width - v.shape[1])) for v in values])

        return cls(
            TokenBatch.cat([r.tokens for r in ranks]),
            TokenStats.cat([r.before for r in ranks]),
            {name: cat([r.per[name] for r in ranks]) for name in ranks[0].per},
            {name: cat([r.predicted[name] for r in ranks]) for name in ranks[0].predicted},
            {name: [p for r in ranks for p in r.parts[name]] for name in ranks[0].parts},
        )


def gathered(own: Recorded | None, replicas: Replicas) -> Recorded | None:
    """On rank 0 what all ranks have recorded, on the others their own; every rank calls it after
    every step, with None where it has nothing. None where no rank has anything."""
    if replicas.size == 1:
        return own
    into: list[Any] | None = [None] * replicas.size if replicas.rank == 0 else None
    dist.gather_object(own, into)
    if into is None:
        return own
    there: list[Recorded] = [r for r in into if r is not None]
    return Recorded.joined(there) if there else None
