"""What is measured around one optimizer step: the step's rows, held-out rows, the fixed set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from entropy_lab.probe import rows as to_rows
from entropy_lab.probe.audit import gradient_audit
from entropy_lab.probe.deep import DeepResult, DeepStart, Jvp, finish
from entropy_lab.probe.fine import FineRows
from entropy_lab.probe.floor import moved_share, noise_floor
from entropy_lab.probe.meters import Meters
from entropy_lab.probe.optimizers import Optimizers
from entropy_lab.probe.path import Path
from entropy_lab.probe.predict import predict_held_out
from entropy_lab.probe.sampling import is_every_nth, is_probed
from entropy_lab.probe.scorer import active_dropout
from entropy_lab.probe.window import Chosen, Probed, Window, choose, measure_after, measured_before
from entropy_lab.probe.world import ALONE, World
from entropy_lab.record import RunWriter
from entropy_lab.types import HELD_OUT, TokenBatch, TokenGrad, TokenStats

NAN = float("nan")
Micro = tuple[Any, TokenBatch]
STEP_METRICS = (  # columns of a step's row that its line in metrics.jsonl repeats
    "step rollout age entropy_token_mean entropy_seq_mean dH_train dH_heldout dH_fixed "
    "entropy_fixed clip_high_frac clip_low_frac dual_clip_frac touched_share grad_norm kappa lr "
    "gradient_audit probe_failed"
).split()


class Tokens(Protocol):
    """All tokens of a step, as one padded batch (a Window, or what several of them sent)."""

    def batch(self) -> TokenBatch: ...
    def stats(self) -> TokenStats: ...
    def per_token(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Cadence:
    """Which steps and rows are measured: pure functions of these and the step number."""

    every: int
    fraction: float
    floor_every: int
    deep_every: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        if min(self.every, self.floor_every, self.deep_every) < 0:
            given = f"{self.every}, {self.floor_every}, {self.deep_every}"
            raise ValueError(f"every, floor_every and deep_every must be >= 0, got {given}")

    def probes(self, step: int) -> bool:
        return is_probed(step, self.every)

    def checks(self, step: int) -> bool:
        return is_every_nth(step, self.every, self.floor_every)

    def deep(self, step: int) -> bool:
        return is_every_nth(step, self.every, self.deep_every)


@dataclass
class StepMeasurement:
    """Everything that one optimizer step needs between its two hooks."""

    step: int
    lr: float
    train: list[Probed] = field(default_factory=list)
    held: list[Probed] = field(default_factory=list)
    watch: list[Probed] = field(default_factory=list)
    fine: FineRows | None = None
    checks: dict[str, float] = field(default_factory=dict)
    start: Path | None = None
    deep: DeepStart | None = None
    result: DeepResult | None = None
    loss_forward_is_before: bool = False
    dropout_off: bool = False
    failed: str = ""
    world: World = ALONE

    def abandon(self, failed: str) -> None:
        """Let go of everything measured: the step is logged as one that was not probed."""
        self.train, self.held, self.watch, self.checks = [], [], [], {}
        self.fine = self.start = self.deep = self.result = None
        self.loss_forward_is_before, self.failed = False, failed

    def measure_after(self, meters: Meters) -> None:
        """The second pass, over the very objects of the first."""
        for parts in (self.train, self.held, self.watch):
            measure_after(parts, meters.main, self.world)
        if self.fine is not None and meters.fine is not None:
            self.fine.finish(meters.fine, self.world)

    def measure_floor(self, meters: Meters) -> None:
        """The noise floor of a floor step, in the first probed micro-batch; what moved."""
        if self.start is None or not self.train:
            return
        main = meters.main
        path = Path(main.model, self.start.start, main.precision, self.world)
        found = noise_floor(path, main.score, self.train[0])
        self.checks |= dict(zip(("floor", "bias", "floor_rows"), found, strict=True))
        self.checks["moved_share"] = moved_share(path)
        self.checks["moved_share_bfloat16"] = moved_share(path, torch.bfloat16)

    def measure_deep(
        self,
        meters: Meters,
        optimizers: Optimizers,
        window: Window,
        notes: Mapping[str, Any],
        jvp: Jvp,
    ) -> None:
        """Path forms and influence of a deep step; kappa is the loop's, or fitted by the audit."""
        if self.deep is None:
            return
        kappa = float(notes.get("kappa", self.checks.get("kappa", 1.0)))
        main = meters.main.precision
        self.result = finish(
            self.deep, meters.deep, optimizers, window, self.train, kappa, jvp, main
        )

    def summary(self, window: Tokens, predicted: dict[str, Tensor]) -> dict[str, Any]:
        """The step's row of the steps table, but for what only the loop knows."""
        batch = window.batch()
        flags, weight = window.per_token("flags"), window.per_token("weight")
        return {
            "step": self.step,
            "age": batch.age,
            "probed": bool(self.train),
            "n_probed": sum(int(p.batch.mask.sum()) for p in self.train),
            "inclusion_prob": min((p.inclusion_prob for p in self.train), default=NAN),
            "lr": self.lr,
            "before_is_loss_forward": self.loss_forward_is_before,
            "dropout_off": self.dropout_off,
            **to_rows.loss_scalars(batch, window.stats(), flags, weight, predicted),
            "dH_train": to_rows.mean_change(self.train),
            "dH_heldout": to_rows.mean_change(self.held or self.watch),
            "dH_fixed": to_rows.mean_change(self.watch),
            "entropy_fixed": _mean_before(self.watch),
            **to_rows.change_by_quadrant(self.train),
            **to_rows.response_scalars(self.train, "train"),
            # Not the fixed set: its ratio to the policy that sampled it spans the whole run.
            **to_rows.response_scalars(self.held, "heldout"),
            "kappa": NAN,
            "repeat_max": NAN,
            "gradient_audit": NAN,
            "floor": NAN,
            "bias": NAN,
            **self.checks,
            **(self.fine.scalars() if self.fine else {}),
            **(deep_scalars(self.train, self.result) if self.result else {}),
            **({"probe_failed": self.failed} if self.failed else {}),
        }


def measure_before_step(
    measurement: StepMeasurement,
    window: Window,
    meters: Meters,
    cadence: Cadence,
    held_out: Sequence[Micro],
    fixed: Sequence[Micro],
    loss_forward_is_before: bool | None,
) -> bool:
    """First pass of a probed step; returns whether the loss forward may serve as "before".

    It may where, when last compared (at start-up and on floor steps), a pass of its own was
    bitwise equal for every micro-batch.
    """
    m, records, scorer = measurement, window.records, meters.main
    m.dropout_off = bool(active_dropout(scorer.model))
    if m.dropout_off or cadence.fraction < 1 or scorer is not meters.training:
        same = False
    elif loss_forward_is_before is None or cadence.checks(m.step):
        own = [_same(scorer.measure(r.inputs), r.stats) for r in m.world.deal(records)]
        same = all(m.world.collect(own))
    else:
        same = loss_forward_is_before
        if same:
            for r in m.world.deal(records):
                scorer.put(r.inputs, r.stats)
    m.loss_forward_is_before = same
    step = [(r.inputs, r.batch) for r in records]
    chosen = [
        choose(inputs, batch, cadence.seed, m.step, index, cadence.fraction)
        for index, (inputs, batch) in enumerate([*step, *held_out])
    ]
    kinds = (chosen[: len(step)], chosen[len(step) :])
    m.train, m.held = measured_before(kinds, scorer, m.world)
    watched = [Chosen(inputs, batch, None, 1.0) for inputs, batch in fixed]
    [m.watch] = measured_before([watched], scorer, m.world)
    if meters.fine is not None:
        m.fine = FineRows.choose(m.train, cadence.seed, m.step, meters.fine)
    return same


def run_checks(
    measurement: StepMeasurement,
    window: Window,
    meters: Meters,
    kappa: float | None,
    optimizers: Optimizers = (),
    audited: bool = True,
) -> None:
    """The repeat check and the gradient audit of a floor step, at theta, before it moves."""
    world = measurement.world
    repeats = [
        (meters.main.fresh(p.source).rows(p.within).entropy - p.before.entropy)[p.batch.mask]
        for p in measurement.train
        if p.source is not None
    ]
    pairs = [(r.inputs, r.grad) for r in world.deal(window.records)]
    if audited:
        audit, kappa = gradient_audit(meters.training, pairs, kappa, optimizers, world)
    else:
        audit, kappa = NAN, NAN if kappa is None else kappa
    if measurement.dropout_off:
        audit = NAN  # the audit's own pass cannot draw the loss forward's dropout again
    largest = world.collect([float(r.abs().max()) if len(r) else NAN for r in repeats])
    repeat = max((r for r in largest if r == r), default=NAN)
    measurement.checks = {"repeat_max": repeat, "gradient_audit": audit, "kappa": kappa}


def deep_scalars(train: Sequence[Probed], result: DeepResult) -> dict[str, float]:
    """The accounts of a deep step, and the mean of every path form over its probed tokens."""
    sums = result.accounts
    scalars = {
        "G_dtheta": sums.G_dtheta,
        "influence_sum": sums.influence_sum,
        "momentum_term": sums.momentum_term,
        "decay_term": sums.decay_term,
        "other_term": sums.other_term,
        "identity_error": sums.error,
        **{f"layer_{name}": value for name, value in sums.layers.items()},
    }
    for name in result.path[0]:
        values = torch.cat([c[name][p.batch.mask] for c, p in zip(result.path, train, strict=True)])
        weight = torch.cat(
            [
                torch.full_like(c[name][p.batch.mask], 1 / p.inclusion_prob)
                for c, p in zip(result.path, train, strict=True)
            ]
        )
        scalars[name] = to_rows.weighted_mean(values, weight)
    return scalars


def write_token_rows(
    measurement: StepMeasurement,
    window: Window,
    predicted: dict[str, Tensor],
    writer: RunWriter,
    numbers: Callable[[int], int] = int,
) -> None:
    """The probed rows of the step, then its held-out rows (micro numbers follow on).

    numbers: the micro-batch number of the index-th of this process. Of several ranks that share
    their records each writes the micro-batches that are its own.
    """
    owns = measurement.world.owns

    def write(columns: to_rows.Columns) -> None:
        known = set(writer.token_columns)
        writer.tokens({name: values for name, values in columns.items() if name in known})

    step, first, result = measurement.step, 0, measurement.result
    for index, (part, r) in enumerate(zip(measurement.train, window.records, strict=False)):
        size, width = r.batch.mask.shape
        own = {k: v[first : first + size, :width] for k, v in predicted.items()}
        first += size
        if not owns(index):
            continue
        grad, weight, flags = r.grad, r.weight, r.flags
        influence = result.influence[index] if result else {}
        if part.rows is not None:
            picked = part.rows.to(flags.device)
            grad, weight, flags = grad.rows(picked), weight[picked], flags[picked]
            own = {k: v[picked] for k, v in own.items()}
            influence = {k: v[picked] for k, v in influence.items()}
        deep = {**influence, **(result.path[index] if result else {})}
        deep |= measurement.fine.column(part) if measurement.fine else {}
        write(to_rows.token_columns(step, numbers(index), part, grad, weight, flags, own, deep))
    for number, part in enumerate(measurement.held):
        if not owns(number):
            continue
        index = len(window.records) + number
        idle = torch.zeros_like(part.before.logp)
        flags = torch.full_like(part.batch.mask, HELD_OUT, dtype=torch.uint8)
        own = predict_held_out(window, part.batch, part.before, measurement.lr)
        grad = TokenGrad(idle, idle)
        write(to_rows.token_columns(step, numbers(index), part, grad, idle + 1, flags, own))


def _same(a: TokenStats, b: TokenStats) -> bool:
    return torch.equal(a.entropy, b.entropy) and torch.equal(a.logp, b.logp)


def _mean_before(parts: list[Probed]) -> float:
    if not parts:
        return NAN
    return float(torch.cat([p.before.entropy[p.batch.mask].double() for p in parts]).mean())
