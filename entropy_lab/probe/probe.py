"""The probe: what one optimizer step did to the entropy of every token, measured and logged."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from entropy_lab.errors import RunError
from entropy_lab.probe import rows as to_rows
from entropy_lab.probe.alarm import log_alarm
from entropy_lab.probe.around import Around, EntropyOf
from entropy_lab.probe.deep import Jvp
from entropy_lab.probe.guard import Guard
from entropy_lab.probe.log import OnAlarm, OnFull, StepLog, open_writer
from entropy_lab.probe.memory import MemoryCap
from entropy_lab.probe.meters import Meters
from entropy_lab.probe.optimizers import Given, innermost
from entropy_lab.probe.precision import Policy, ProbeDtype, Setting
from entropy_lab.probe.replicas import Replicas, apart, wrapped
from entropy_lab.probe.sampling import inclusion_prob
from entropy_lab.probe.scorer import Score, Scorer
from entropy_lab.probe.step import Cadence, Micro
from entropy_lab.probe.stepping import Stepping
from entropy_lab.probe.update import check_supported
from entropy_lab.probe.window import Watched, numbered_all
from entropy_lab.probe.world import ALONE, World, measured_by_all
from entropy_lab.record import create_run, write_vocab
from entropy_lab.types import TokenBatch, TokenStats


class Probe(Stepping):
    """Measure H before and after each optimizer step on the step's own tokens, and log it.

    Three lines in any PyTorch loop: Probe(model, optimizer, "runs/mine", score) once,
    stats = probe.record(inputs, batch) instead of score(inputs), probe.close() at the end.

    `score(inputs) -> TokenStats` runs the model on one micro-batch (see `token_stats`). Both
    passes of a step call it on the same objects, without gradients. dH = H(theta') - H(theta)
    in nats for each token; the weights of the run are bitwise those of a run without the probe.

    `inputs` is a tensor or a container of tensors whose first axis is the response, and `score`
    depends on nothing else but the parameters, so that some responses can be measured alone.

    every, fraction: probe each `every`-th step (0: none) on this share of each micro-batch's
    responses. floor_every: every so many probed steps the gradient audit, the repeat check and
    the noise floor run. deep_every (0: never): likewise the path forms and the influence, for
    SGD, Adam and AdamW; jvp: "forward" by forward-mode AD, "slope" by finite differences along
    the path; entropy_of: the rows whose mean entropy influence refers to; snapshots: the device
    that keeps theta for them (None: that of the parameters).
    dtype: "same" measures as the loss forward runs, autocast included, "float32" and "float64" in
    that arithmetic throughout; "auto" is "same", and where that is half precision at most 8
    responses a step are measured in float32 as well (column dH_float32). policy: "master" measures
    the parameters as they are, "cast" rounded to the training dtype (bfloat16 in a float32 run).
    strict: an error of the probe ends the loop. Otherwise it is an event (in events/, and once
    through `logging`), the step goes unmeasured and training goes on: see Guard and Around.
    max_memory_gb, memory_fraction: what the passes may take (MemoryCap); out of memory they take
    fewer rows from then on. on_full: "drop" loses token rows rather than wait for a slow disk, the
    default unless strict. on_alarm: told when the collapse alarm begins to ring (an Alarm).
    `optimizer` may be several, all of which step once in a policy step. `model` may be wrapped in
    DistributedDataParallel (replicas.py): pass the wrapper, which `score` calls. tell_cost: print
    what the probe cost at the end and keep it in run.json.
    world: the processes that take the step together; each records its own micro-batches, and `fix`
    and `hold_out` are given all of them. loss_score: the loss forward where it is not `score`.
    max_log_bytes: max_bytes of RunWriter. vocab: the text of each token id, for reports
    (vocab.json). run_dir is created; to continue a run pass `start_step` after `record.rewind`.
    Raises RunError where run_dir holds a run already or cannot be written, ValueError for an
    option that is none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Given,
        run_dir: str | Path,
        score: Score,
        *,
        every: int = 1,
        fraction: float = 1.0,
        floor_every: int = 10,
        deep_every: int = 0,
        jvp: Jvp = "forward",
        entropy_of: EntropyOf = "train",
        snapshots: str | None = None,
        dtype: ProbeDtype = "auto",
        policy: Policy = "master",
        profile: Literal["core", "full"] = "full",
        seed: int = 0,
        temperature: float = 1.0,
        config: dict[str, Any] | None = None,
        start_step: int | None = None,
        write_samples: bool = True,
        on_full: OnFull | None = None,
        strict: bool = False,
        max_memory_gb: float | None = None,
        memory_fraction: float | None = None,
        on_alarm: OnAlarm | None = log_alarm,
        tell_cost: bool = True,
        world: World = ALONE,
        loss_score: Score | None = None,
        max_log_bytes: float = 0,
        vocab: Sequence[str | None] | None = None,
    ):
        cadence = Cadence(every, fraction, floor_every, deep_every, seed)
        optimizers = innermost(optimizer)
        if deep_every:
            for each in optimizers:
                check_supported(each)
        replicas = Replicas.of(model)
        if deep_every and (replicas.size > 1 or not optimizers):
            raise ValueError(
                "path forms and influence need one process and the optimizers themselves: set "
                "deep_every=0"
            )
        own = wrapped(model)
        memory = MemoryCap(max_memory_gb, memory_fraction, next(own.parameters()).device)
        setting = Setting(dtype, policy)
        meters = Meters(own, apart(score, model), optimizers, setting, loss_score or score)
        if start_step is None:
            facts = {"world_size": replicas.size} if replicas.size > 1 else {}
            seeds = {"seed": seed}
            replicas.first(lambda: create_run(run_dir, config or {}, seeds=seeds, extra=facts))
        rank = replicas.rank or world.rank
        if vocab is not None and not rank:
            write_vocab(run_dir, vocab)
        guard = Guard(run_dir, rank, strict)
        full: OnFull = on_full or ("block" if strict or replicas.size > 1 else "drop")
        log = StepLog(
            open_writer(run_dir, cadence, temperature, profile, full, rank, world, max_log_bytes),
            guard,
            write_samples=write_samples, on_alarm=on_alarm, tell_cost=tell_cost, replicas=replicas,
        )  # fmt: skip
        around = Around(
            meters, optimizers, cadence, guard, memory,
            jvp=jvp, entropy_of=entropy_of, snapshots=snapshots, audited=replicas.size == 1,
            world=world,
        )  # fmt: skip
        super().__init__(guard, log, around, meters, optimizers, replicas, start_step or 0)
        self._when_closed: list[Callable[[], object]] = []
        self._at_end = weakref.finalize(self, self.log.close)

    @property
    def scorer(self) -> Scorer:
        """No-grad passes as the loss forward runs, shared with the probe's own."""
        return self.meters.training

    def record(
        self,
        inputs: Any,
        batch: TokenBatch,
        stats: TokenStats | None = None,
        watched: Watched | None = None,
    ) -> TokenStats:
        """The loss forward of one micro-batch: score(inputs), its gradients under watch; `stats`
        is that forward where `meters.forward(inputs)` has made it already. watched: the loss reads
        these two, logp and entropy (B, T), which another code than `score` computed."""
        if self._closed and self.guard.strict:
            raise RuntimeError("probe.record after probe.close: the log has ended")
        self.commit()
        self._forget_skipped()
        if not self.window.records:
            self._began = time.perf_counter()
            self.log.cost.begin()
        stats = stats or self.meters.forward(inputs)
        if not (self._closed or self.log.ended):
            first = self.replicas.first_uid(self.step)
            add = partial(self.window.add, inputs, batch, stats, first, watched)
            failed = self.guard.attempt("record", self.step, add)
            self.window.spoiled = self.window.spoiled or failed
        return stats

    def annotate(self, *, weight: Tensor | float | None = None, flags: Tensor | None = None):
        """What the method did to the micro-batch recorded last: weight (B, T), flags (B, T) u8."""
        annotate = partial(self.window.annotate, weight, flags)
        self.guard.attempt("annotate", self.step, annotate)

    def hold_out(self, micros: Sequence[Micro], source: str = "given") -> None:
        """Rows that the coming step does not train on; measured around it like its own."""
        self._held_out = numbered_all(micros, (self.step << 32) + (1 << 31))
        self._held_out_source = source

    def fix(self, micros: Sequence[Micro], *, save: bool = True) -> None:
        """The fixed probe set: the same responses around every probed step of the run."""

        def measure_and_save() -> None:
            inputs, batches = zip(*self._fixed, strict=True) if self._fixed else ((), ())
            stats = measured_by_all(self.meters.main, inputs, self._around.world)
            self.writer.fixed(to_rows.fixed_columns(list(zip(batches, stats, strict=True))))

        self._fixed = numbered_all(micros, -1 << 32)
        if save and self.guard.attempt("fix", self.step, measure_and_save):
            self._fixed = []

    def note(self, **scalars: float | int | str | bool) -> None:
        """Values for the coming row of steps: kappa, grad_norm, rollout, method_*."""
        self._notes |= scalars

    def samples(self, columns: dict[str, Any]) -> None:
        """Rows of the samples table (prompt and response text, rewards)."""
        self.guard.attempt("samples", self.step, lambda: self.writer.samples(columns))

    def inclusion_prob(self, size: int) -> float:
        """The chance of one of a micro-batch's `size` responses to be probed in a probed step."""
        return inclusion_prob(self.cadence.fraction, size)

    def commit(self, **metrics: Any) -> dict[str, Any]:
        """End the step that was just taken: its line in metrics.jsonl, with the caller's values.

        Called by the next `record` and by `close` where the loop does not call it.
        """
        self._hooks.end()
        return self.log.commit(metrics)

    def flush(self) -> None:
        """Make every row so far durable; parts of the log end here."""
        self.commit()
        self.guard.attempt("log", self.step, self.writer.flush)
        self.log.check_writer(self.step)

    def close(self, status: str = "finished") -> None:
        """Write what is left, take the hooks off, and give the run its final status; once."""
        if self._closed:
            return
        self._closed = True
        self._hooks.end()
        self._forget_skipped()
        self._hooks.remove()
        for action in self._when_closed:
            self.guard.attempt("close", self.step, action)
        self.meters.close()
        self.window.close()
        self._at_end.detach()
        self.log.close(status)

    def on_close(self, action: Callable[[], object]) -> None:
        """Run `action` when the probe is closed."""
        self._when_closed.append(action)

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, *_: object
    ) -> None:
        if kind is None or value is None:
            self.close()
            return
        self._around.world.abandon(value)
        with suppress(RunError):  # the first error is the one to report
            self.close("interrupted" if kind is KeyboardInterrupt else "failed")
