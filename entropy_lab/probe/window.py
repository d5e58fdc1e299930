"""The micro-batches of one optimizer step, with what the loss said about their tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropy_lab.probe.inputs import join_rows, take_rows
from entropy_lab.probe.sampling import sampled_count, sampled_rows
from entropy_lab.probe.scorer import Scorer
from entropy_lab.probe.world import World
from entropy_lab.types import NOT_SCORABLE, TRUNCATED, TokenBatch, TokenGrad, TokenStats

Watched = tuple[Tensor, Tensor]
Told = tuple[TokenBatch, TokenStats, TokenGrad, Tensor, Tensor]


class MicroRecord:
    """One micro-batch of the update: inputs, loss forward, and the gradients that come back.

    `grad` fills up while the loss runs backward: tensor hooks on logp and entropy add
    c = -dL/dlogp and e = -dL/dentropy, over as many backward calls as there are. watched: the
    tensors that the loss reads, where those of `stats` are other ones.
    """

    def __init__(
        self, inputs: Any, batch: TokenBatch, stats: TokenStats, watched: Watched | None = None
    ):
        self.inputs = inputs
        self.batch = batch
        self.stats = stats.detach()
        self.weight = torch.ones_like(self.stats.logp)
        self.flags = torch.zeros_like(batch.mask, dtype=torch.uint8)
        if batch.truncated is not None:
            self.flags |= TRUNCATED * batch.truncated.to(torch.uint8)[:, None]
        self.pushed = False  # whether a backward pass has reached it
        self.error = ""  # what kept a gradient from being read
        self.grad = TokenGrad(torch.zeros_like(stats.logp), torch.zeros_like(stats.entropy))
        logp, entropy = watched or (stats.logp, stats.entropy)
        self._handles = [logp.register_hook(self._adder(self.grad.grad_logp))]
        if entropy.requires_grad:
            self._handles.append(entropy.register_hook(self._adder(self.grad.grad_entropy)))

    @classmethod
    def of_another_rank(cls, told: Told) -> MicroRecord:
        """What `told` says of a micro-batch that another process has recorded; inputs are None."""
        record = cls.__new__(cls)
        record.inputs, record.pushed, record.error, record._handles = None, True, "", []
        record.batch, record.stats, record.grad, record.weight, record.flags = told
        return record

    def told(self) -> Told:
        """All that other ranks need to know of it."""
        return (self.batch, self.stats, self.grad, self.weight, self.flags)

    def _adder(self, into: Tensor):  # the hook returns None, so the gradient is left alone
        def add(gradient: Tensor | None) -> None:
            self.pushed = True
            try:
                if gradient is not None:  # None: the loss does not use this statistic
                    into.sub_(gradient.detach())
            except Exception as error:  # raised here it would end the user's backward pass
                self.error = f"{type(error).__name__}: {error}"

        return add

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


@dataclass
class Window:
    """All micro-batches whose gradients enter one optimizer step, as one padded batch."""

    records: list[MicroRecord] = field(default_factory=list)
    spoiled: str = ""  # the event for which a micro-batch of the step is missing

    @property
    def pushed(self) -> bool:
        return any(r.pushed for r in self.records)

    def add(
        self,
        inputs: Any,
        batch: TokenBatch,
        stats: TokenStats,
        first_uid: int = 0,
        watched: Watched | None = None,
    ) -> None:
        """Take in one micro-batch; raises RuntimeError or ValueError where it cannot be right.

        Responses without a uid are numbered from first_uid on, over the micro-batches.
        """
        read = (stats.logp, stats.entropy) if watched is None else watched[:1]
        if not all(x.requires_grad for x in read):
            raise RuntimeError(
                "probe.record got statistics without gradients: call it outside torch.no_grad() "
                "and let `score` return token_stats of logits that depend on the parameters"
            )
        if any(r.inputs is inputs for r in self.records):
            raise ValueError(
                "one inputs object was recorded twice before a step: both passes read it again, so "
                "give every micro-batch tensors of its own"
            )
        if not bool(batch.advantage[batch.mask].isfinite().all()):
            raise ValueError(
                "TokenBatch.advantage is NaN or infinite at valid tokens: mask them out or mend "
                "the rewards"
            )
        first = first_uid + sum(len(r.batch.mask) for r in self.records)
        self.records.append(MicroRecord(inputs, numbered(batch, first), stats, watched))

    def annotate(self, weight: Tensor | float | None, flags: Tensor | None) -> None:
        """What the method did to the micro-batch added last; RuntimeError where there is none."""
        if not self.records:
            raise RuntimeError("probe.annotate speaks of the last record(): call record() first")
        record = self.records[-1]
        if weight is not None:
            record.weight = torch.ones_like(record.stats.logp) * weight
        if flags is not None:
            record.flags = record.flags | flags

    def keep_pushed(self) -> None:
        """Leave out micro-batches that no backward pass has reached: they are in no update.

        Raises RuntimeError where a gradient was there and could not be read.
        """
        idle = [r for r in self.records if not r.pushed]
        if idle:
            warnings.warn(
                f"{len(idle)} of {len(self.records)} recorded micro-batches got no gradient before "
                "optimizer.step(), so they are left out; call probe.discard() for a skipped update",
                stacklevel=2,
            )
        for record in idle:
            record.close()
        self.records = [r for r in self.records if r.pushed]
        for record in self.records:
            if record.error:
                raise RuntimeError(f"a gradient could not be read: {record.error}")

    def divide(self, scale: float) -> None:
        """Take the factor that the loss was multiplied with out of the gradients."""
        for record in self.records:
            record.grad.grad_logp.div_(scale)
            record.grad.grad_entropy.div_(scale)

    def finite(self) -> bool:
        """Whether all gradients at valid tokens are finite."""
        parts = [g[r.batch.mask] for r in self.records for g in vars(r.grad).values()]
        return bool(torch.stack([p.isfinite().all() for p in parts]).all())

    def share(self, world: World) -> None:
        """Let every rank know the records of all, in the order of one process's."""
        if world.size > 1:
            own = iter(self.records)
            told = world.collect([r.told() for r in self.records])
            self.records = [
                next(own) if world.owns(i) else MicroRecord.of_another_rank(t)
                for i, t in enumerate(told)
            ]

    def batch(self) -> TokenBatch:
        return TokenBatch.cat([r.batch for r in self.records])

    def stats(self) -> TokenStats:
        return TokenStats.cat([r.stats for r in self.records])

    def grad(self) -> TokenGrad:
        return TokenGrad.cat([r.grad for r in self.records])

    def per_token(self, name: str) -> Tensor:
        """`weight` or `flags` of all records, (B, T) padded with zeros."""
        width = max(r.batch.mask.shape[1] for r in self.records)
        parts = [getattr(r, name) for r in self.records]
        return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])

    def close(self) -> None:
        for record in self.records:
            record.close()


@dataclass
class Probed:
    """The probed rows of one micro-batch and their statistics before and after the step.

    rows: sorted indices (B',) into the micro-batch, None for all; inclusion_prob: the chance that
    each response of the micro-batch had to be among them. source, within: what both passes run on
    and where these rows stand in it; sampled rows of several micro-batches share one pass. Of
    another rank's micro-batch only the numbers are known: inputs and source are None.
    """

    inputs: Any
    batch: TokenBatch
    rows: Tensor | None
    inclusion_prob: float
    source: Any
    within: slice
    before: TokenStats
    after: TokenStats | None = None

    def measure(self, scorer: Scorer) -> TokenStats:
        """Statistics of these rows at the present parameters."""
        return scorer.measure(self.source).rows(self.within)

    @property
    def dH(self) -> Tensor:
        """H(after) - H(before), (B', T) nats, before any rounding; 0 outside the mask."""
        assert self.after is not None
        return torch.where(self.batch.mask, self.after.entropy - self.before.entropy, 0.0)

    @property
    def dlogp(self) -> Tensor:
        assert self.after is not None
        return torch.where(self.batch.mask, self.after.logp - self.before.logp, 0.0)


def numbered(batch: TokenBatch, first: int) -> TokenBatch:
    """The batch with uids first, first + 1, ... where it has none of its own."""
    if batch.uid is not None:
        return batch
    count = torch.arange(len(batch.mask), device=batch.mask.device)
    return replace(batch, uid=first + count)


def numbered_all(
    micros: Sequence[tuple[Any, TokenBatch]], first: int
) -> list[tuple[Any, TokenBatch]]:
    """The same for several micro-batches, counting on."""
    out = []
    for inputs, batch in micros:
        out.append((inputs, numbered(batch, first)))
        first += len(batch.mask)
    return out


class Chosen(NamedTuple):
    """Rows to be measured; the fields are those of Probed."""

    inputs: Any
    batch: TokenBatch
    rows: Tensor | None
    inclusion_prob: float


def choose(
    inputs: Any, batch: TokenBatch, seed: int, step: int, micro: int, fraction: float
) -> Chosen:
    """The probed responses of a micro-batch."""
    size = len(batch.token_id)
    rows = sampled_rows(seed, step, micro, size, fraction)
    if rows is None:
        return Chosen(inputs, batch, None, 1.0)
    share = sampled_count(fraction, size) / size
    return Chosen(take_rows(inputs, rows), batch.rows(rows.to(batch.mask.device)), rows, share)


def measure_before(chosen: Sequence[Chosen], scorer: Scorer) -> list[Probed]:
    """First pass over the chosen rows; sampled ones together, as many responses a pass as the
    largest of their micro-batches had.

    A pass over a few rows costs little more than one over one row. What counts is that the second
    pass sees the same layout.
    """
    out: list[Probed] = []
    for group in _passes(chosen):
        joined = join_rows([c.inputs for c in group]) if len(group) > 1 else None
        start = 0
        for c in group:
            alone = joined is None
            first = 0 if alone else start
            within = slice(first, first + len(c.batch.mask))
            source = c.inputs if alone else joined
            stats = scorer.measure(source).rows(within)
            out.append(Probed(*c, source, within, before=stats))
            start += len(c.batch.mask)
    return out


def measured_before(
    kinds: Sequence[Sequence[Chosen]], scorer: Scorer, world: World
) -> list[list[Probed]]:
    """`measure_before` of several kinds of rows, each kind dealt to the ranks and known to all."""
    own = [world.deal(chosen) for chosen in kinds]
    probed = iter(measure_before([c for chosen in own for c in chosen], scorer))
    out = []
    for chosen, mine in zip(kinds, own, strict=True):
        parts = [next(probed) for _ in mine]
        stats = world.collect([p.before for p in parts])
        here = iter(parts)
        out.append(
            [
                next(here) if world.owns(i) else Probed(*c._replace(inputs=None), None, slice(0), s)
                for i, (c, s) in enumerate(zip(chosen, stats, strict=True))
            ]
        )
    return out


def measure_after(parts: Sequence[Probed], scorer: Scorer, world: World) -> None:
    """Second pass over the rows of one kind, by the ranks that measured them before."""
    own = [p.measure(scorer) for p in parts if p.source is not None]
    for part, stats in zip(parts, world.collect(own), strict=True):
        part.after = stats


def _passes(chosen: Sequence[Chosen]) -> Iterator[list[Chosen]]:
    group: list[Chosen] = []
    for c in chosen:
        size = sum(len(g.batch.mask) for g in (*group, c))
        most = max(round(len(g.batch.mask) / g.inclusion_prob) for g in (*group, c))
        if group and (c.rows is None or group[-1].rows is None or size > most):
            yield group
            group = []
        group.append(c)
    if group:
        yield group


def mark_not_scorable(flags: Tensor, *stats: TokenStats) -> Tensor:
    """Add NOT_SCORABLE where a logp or an entropy is not finite."""
    bad = torch.zeros_like(flags, dtype=torch.bool)
    for part in stats:
        bad |= ~(part.logp.isfinite() & part.entropy.isfinite())
    return torch.where(bad, flags | NOT_SCORABLE, flags)
