"""What the audit asks of a method, and what a method answers about one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

# own: as the trainer of the run would call it; micro-batch, rank: every part for itself.
Split = Literal["own", "micro-batch", "rank"]


@dataclass(frozen=True)
class Part:
    """Responses that a method sees together."""

    batch: TokenBatch
    stats: TokenStats


@dataclass(frozen=True)
class Push:
    """A method's gradient on all tokens of a step, (B, T), 0 outside the mask.

    weight, omega (B, T): of its plan, None where it has none. units: the responses over which it
    takes its batch statistics, slices of B.
    """

    grad: TokenGrad
    weight: Tensor | None = None
    omega: Tensor | None = None
    units: tuple[slice, ...] = ()


@dataclass
class Candidate:
    """A method under audit.

    label: as it was named; kind: registry, intervention, verl loss or loss; settings: its
    parameters. method: the object whose `advantages` it uses, None where it takes the logged ones.
    notes: what a reader should know, filled while it runs.
    """

    label: str
    kind: str
    settings: dict[str, Any]
    method: Any = None
    notes: list[str] = field(default_factory=list)

    def initial_state(self) -> Any:
        """The method's memory before the first rollout."""
        return None

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats, state: Any) -> Any:
        """The memory with which the steps of a rollout are planned."""
        return state

    def end_step(self, batch: TokenBatch, stats: TokenStats, state: Any) -> Any:
        """The memory after an optimizer step."""
        return state

    def push(self, parts: Sequence[Part], state: Any, split: Split = "own") -> Push:
        """The gradient of its loss on the micro-batches of one step.

        Raises ConfigError naming the bug where a user's method has one, RunError where the log
        lacks what it reads.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Add the notes that only the end of the run can tell."""


@dataclass(frozen=True)
class Leaves:
    """logp and entropy of some responses as leaves of the gradient."""

    logp: Tensor
    entropy: Tensor

    @classmethod
    def of(cls, stats: TokenStats) -> Leaves:
        return cls(*(x.detach().clone().requires_grad_() for x in (stats.logp, stats.entropy)))

    def grad(self) -> TokenGrad:
        """c = -dL/dlogp and e = -dL/dentropy of the backward passes so far."""
        return TokenGrad(
            *(torch.zeros_like(x) if x.grad is None else -x.grad for x in (self.logp, self.entropy))
        )


@contextmanager
def seeded(batch: TokenBatch) -> Iterator[None]:
    """Random draws inside are a function of the run's seed and the step alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((batch.seed * 1_000_003 + batch.step) % 2**63)
        yield
