"""The processes that take one optimizer step together, as the probe sees them.

The micro-batches of a step are dealt out in turn: number i belongs to rank i % size, whatever they
hold. Every rank knows what is small of all of them (batches, statistics, gradients at logp and
entropy), and runs the model on its own alone. A rank may hold only its part of each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class World(Protocol):
    """What several processes have to agree on. Every method but `owns`, `deal`, `weight`,
    `trained`, `part` and `abandon` has to be called by all of them, in one order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def owns(self, index: int) -> bool:
        """Whether micro-batch `index` of a step is this rank's."""
        ...

    def deal(self, items: Sequence[T]) -> list[T]:
        """This rank's own of `items`, one for each micro-batch."""
        ...

    def collect(self, own: Sequence[T]) -> list[T]:
        """All items in their order, of which each rank gives its own; those stay the objects they
        are, the others are copies."""
        ...

    def told(self, value: T | None) -> T | None:
        """The value of the lowest rank that has one; None where none has."""
        ...

    def lowest(self, value: int | None) -> int | None:
        """The smallest of the ranks' values; None where one has none."""
        ...

    def fill(self) -> None:
        """Bring the whole weights, as they are now, to the model that measures."""
        ...

    def empty(self) -> None:
        """Give the memory of the whole weights back, until the next `fill`."""
        ...

    def weight(self, model: nn.Module, name: str) -> nn.Parameter:
        """The parameter of that name that the optimizer moves."""
        ...

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """All of them that require a gradient, by name."""
        ...

    def part(self, tensor: Tensor) -> Tensor:
        """This rank's part of a parameter, or of what has its shape and lies as it does."""
        ...

    def summed(self, gradient: Tensor) -> Tensor:
        """This rank's part of the sum over ranks of a whole gradient, which is given up."""
        ...

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The tensor of parameter `name` that the ranks have parts of."""
        ...

    def over_parts(self, value: float) -> float:
        """The sum of a number that each rank has taken over its parts of the parameters."""
        ...

    def at(self, doing: str) -> None:
        """Say what comes next, for the others' errors."""
        ...

    def abandon(self, reason: BaseException) -> None:
        """Tell the others that this rank goes no further, and agree on nothing from now on."""
        ...


class Alone:
    """One process: everything is its own, and nothing is copied."""

    rank = 0
    size = 1

    def owns(self, index: int) -> bool:
        return True

    def deal(self, items: Sequence[T]) -> list[T]:
        return list(items)

    def collect(self, own: Sequence[T]) -> list[T]:
        return list(own)

    def told(self, value: T | None) -> T | None:
        return value

    def lowest(self, value: int | None) -> int | None:
        return value

    def fill(self) -> None:
        pass

    def empty(self) -> None:
        pass

    def weight(self, model: nn.Module, name: str) -> nn.Parameter:
        return model.get_parameter(name)

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def part(self, tensor: Tensor) -> Tensor:
        return tensor

    def summed(self, gradient: Tensor) -> Tensor:
        return gradient

    def whole(self, name: str, part: Tensor) -> Tensor:
        return part

    def over_parts(self, value: float) -> float:
        return value

    def at(self, doing: str) -> None:
        pass

    def abandon(self, reason: BaseException) -> None:
        pass

    def in_turn(self, make: Callable[[], T]) -> T:
        """`make()` by rank 0 first, then by all others: the first one may fill a cache."""
        return make()

    def prepare(
        self, model: nn.Module, make_score: Callable[..., Any]
    ) -> tuple[nn.Module, nn.Module, Any]:
        """(the model that measures and samples, the one that learns, the loss forward where it is
        not the score of the first): of one process, one."""
        return model, model, None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Take note of the optimizer's steps."""

    def sum_gradients(
        self, params: Sequence[nn.Parameter], passes: int, fill_in: Callable[[], Any]
    ) -> None:
        """After the last backward pass of a step: p.grad is that of the whole step on each rank.

        passes: those of all ranks; fill_in: a loss forward, for ranks that have taken fewer than
        others.
        """

    @property
    def on_stop(self) -> Callable[[], None] | None:
        """What to do when the user asks this process to stop; None: as one process does."""
        return None

    def asked(self, stop: object) -> bool:
        """Whether the user has asked any rank to stop."""
        return bool(stop)


ALONE = Alone()


def measured_by_all(scorer: Any, inputs: Sequence[Any], world: World) -> list[Any]:
    """TokenStats of micro-batches, each measured by the rank that owns it and known to all."""
    return world.collect([scorer.measure(x) for x in world.deal(inputs)])
