"""The processes of one run as a `World`: whole copies of the model, gradients summed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from entropy_lab.probe.world import Alone
from entropy_lab.train.parallel.watch import GRACE, STOPPED, Watch

T = TypeVar("T")
_BUCKET = 25 * 2**20  # bytes of gradient that are summed at a time


class PeerLost(RuntimeError):
    """A collective could not be finished: some other rank is not there any more."""


class Ranks(Alone):
    """Data parallel: every rank has the whole model (`train.parallel = "ddp"`).

    What ranks tell one another is pickled in memory by torch.distributed, and never read from a
    file. Gradients are summed in flat pieces after the last backward pass of a step, so the sum
    over all tokens of the minibatch is that of one process but for the order of the additions.
    """

    def __init__(self, rank: int, size: int, watch: Watch, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self.watch, self.device = watch, device
        self._abandoned = False

    def owns(self, index: int) -> bool:
        return index % self.size == self.rank

    def deal(self, items: Sequence[T]) -> list[T]:
        return list(items[self.rank :: self.size])

    def collect(self, own: Sequence[T]) -> list[T]:
        """Raises RuntimeError where the ranks' shares are not those that `deal` gives."""
        lists = self._gather(list(own))
        total = sum(map(len, lists))
        if [len(part) for part in lists] != [
            len(range(r, total, self.size)) for r in range(self.size)
        ]:
            raise RuntimeError(f"ranks have {[len(p) for p in lists]} items, which no deal gives")
        lists[self.rank] = list(own)
        return [lists[i % self.size][i // self.size] for i in range(total)]

    def told(self, value: T | None) -> T | None:
        if self._abandoned:
            return value
        for rank, found in enumerate(self._gather(value)):
            if found is not None:
                return value if rank == self.rank else found
        return None

    def lowest(self, value: int | None) -> int | None:
        if self._abandoned:
            return value
        found = self._gather(value)
        return None if any(x is None for x in found) else min(found)

    @property
    def on_stop(self) -> Callable[[], None]:
        return self._stopping

    def _stopping(self) -> None:
        self.watch.stop_soon()
        if self.rank == 0:
            print(
                f"all ranks stop after this rollout, or in {GRACE:.0f} s as they are; again to "
                "stop at once",
                file=sys.stderr,
                flush=True,
            )

    def asked(self, stop: object) -> bool:
        return self.told(True if stop else None) is True

    def in_turn(self, make: Callable[[], T]) -> T:
        made = make() if self.rank == 0 else None
        self.told(True)
        return make() if made is None else made

    def prepare(
        self, model: nn.Module, make_score: Callable[..., Any]
    ) -> tuple[nn.Module, nn.Module, Any]:
        self._watch_passes(model)
        return model, model, None

    def sum_gradients(
        self, params: Sequence[nn.Parameter], passes: int, fill_in: Callable[[], Any]
    ) -> None:
        if self.rank >= passes:
            with torch.no_grad():
                fill_in()  # the first forward of a run decides how its ranks measure
        reached = torch.tensor([p.grad is not None for p in params], dtype=torch.int32)
        with self._together("the sum of the gradients"):
            dist.all_reduce(reached, dist.ReduceOp.MAX)
        chosen = [p for p, any_rank in zip(params, reached.tolist(), strict=True) if any_rank]
        for bucket in _buckets(chosen):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in grads])
            with self._together("the sum of the gradients"):
                dist.all_reduce(flat)
            for p, part in zip(bucket, flat.split([g.numel() for g in grads]), strict=True):
                p.grad = part.view_as(p).clone()

    def summed(self, gradient: Tensor) -> Tensor:
        with self._together("a measured gradient"):
            dist.all_reduce(gradient)
        return gradient

    def at(self, doing: str) -> None:
        self.watch.tick(doing)

    def abandon(self, reason: BaseException) -> None:
        """Raises nothing. A lost peer is left to the watch, which knows which one it was."""
        if self._abandoned:
            return
        self._abandoned = True
        if _is_lost_peer(reason):
            self.watch.wait_for_verdict()
        self.watch.fail(_in_a_line(reason))

    def close(self) -> None:
        """Leave together where all goes well, alone where it does not."""
        if not self._abandoned:
            self.told(None)
        self.watch.close()
        if not self._abandoned:
            dist.destroy_process_group()

    def _watch_passes(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(lambda *_: self.watch.tick())

    def _gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(found, moved(value, torch.device("cpu")))
        return [moved(x, self.device) for x in found]

    @contextmanager
    def _together(self, doing: str = "") -> Iterator[None]:
        if doing:
            self.watch.tick(doing)
        try:
            with self.watch.waiting():
                yield
        except RuntimeError as error:
            raise PeerLost(str(error)) from error


def moved(x: Any, device: torch.device) -> Any:
    """Containers of tensors on another device; whatever else they hold stays as it is."""
    if isinstance(x, Tensor):
        return x.detach().to(device)
    if isinstance(x, dict):
        return {k: moved(v, device) for k, v in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(moved(v, device) for v in x))
    if isinstance(x, list | tuple):
        return type(x)(moved(v, device) for v in x)
    if is_dataclass(x) and not isinstance(x, type):
        named = {f.name: getattr(x, f.name) for f in fields(x) if f.init}
        held = {k: moved(v, device) for k, v in named.items() if _holds(v)}
        return replace(x, **held) if held else x
    return x


def _holds(x: Any) -> bool:
    return isinstance(x, Tensor | dict | list | tuple) or is_dataclass(x)


def _buckets(params: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype and device each, of about _BUCKET bytes."""
    bucket: list[nn.Parameter] = []
    size = 0
    for p in params:
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (p.dtype, p.device)
        if bucket and (not alike or size >= _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel() * p.element_size()
    if bucket:
        yield bucket


def _is_lost_peer(error: BaseException) -> bool:
    text = str(error).lower()
    named = any(word in text for word in ("gloo", "nccl", "connection", "socket", "broken pipe"))
    return isinstance(error, PeerLost) or (isinstance(error, RuntimeError) and named)


def is_out_of_memory(error: BaseException) -> bool:
    """An allocation that failed, on a device or the host."""
    said = isinstance(error, RuntimeError) and "you tried to allocate" in str(error)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


def out_of_memory(error: BaseException) -> str:
    """What failed and what to do, in a line."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    reason = reason[max(0, reason.find("you tried to allocate")) :].split(". ")[0][:200]
    return f"out of memory ({reason}): lower train.micro_batch or rollout.prompts"


def _in_a_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    if is_out_of_memory(error):
        return out_of_memory(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
