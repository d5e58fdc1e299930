"""The probe: what one optimizer step did to the entropy of every token, measured and logged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from entropy_lab.errors import RunError
from entropy_lab.predictors import PREDICTORS
from entropy_lab.probe import rows as to_rows
from entropy_lab.probe.deep import Jvp, begin
from entropy_lab.probe.meters import Meters
from entropy_lab.probe.path import Path as ParameterPath
from entropy_lab.probe.precision import Policy, ProbeDtype, Setting
from entropy_lab.probe.predict import predict_window
from entropy_lab.probe.sampling import inclusion_prob
from entropy_lab.probe.scorer import Score, Scorer
from entropy_lab.probe.step import (
    STEP_METRICS,
    Cadence,
    Micro,
    StepMeasurement,
    mean_lr,
    measure_before_step,
    run_checks,
    write_token_rows,
)
from entropy_lab.probe.update import check_supported
from entropy_lab.probe.window import Window, numbered, numbered_all
from entropy_lab.record import RunWriter, create_run
from entropy_lab.record.schema import CORE_PREDICTORS
from entropy_lab.types import TokenBatch, TokenStats


class Probe:
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
    max_log_bytes: max_bytes of RunWriter. run_dir is created; to continue a run pass `start_step`
    after `record.rewind`. Raises RunError where run_dir holds a run already or cannot be written,
    ValueError for an option that is none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        run_dir: str | Path,
        score: Score,
        *,
        every: int = 1,
        fraction: float = 1.0,
        floor_every: int = 10,
        deep_every: int = 0,
        jvp: Jvp = "forward",
        entropy_of: Literal["train", "held_out", "fixed"] = "train",
        snapshots: str | None = None,
        dtype: ProbeDtype = "auto",
        policy: Policy = "master",
        profile: Literal["core", "full"] = "full",
        seed: int = 0,
        temperature: float = 1.0,
        config: dict[str, Any] | None = None,
        start_step: int | None = None,
        write_samples: bool = True,
        on_full: Literal["block", "drop"] = "block",
        max_log_bytes: float = 0,
    ):
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}")
        if min(every, floor_every, deep_every) < 0:
            given = f"{every}, {floor_every}, {deep_every}"
            raise ValueError(f"every, floor_every and deep_every must be >= 0, got {given}")
        if deep_every:
            check_supported(optimizer)
        setting = Setting(dtype, policy)
        self.optimizer = optimizer
        self.cadence = Cadence(every, fraction, floor_every, deep_every, seed)
        self.jvp: Jvp = jvp
        self.entropy_of, self.snapshots = entropy_of, snapshots
        if start_step is None:
            create_run(run_dir, config or {}, seeds={"seed": seed}, extra={})
        self.step, self.write_samples = start_step or 0, write_samples
        self.writer = RunWriter(
            run_dir,
            meta={
                "temperature": str(temperature),
                "sampling": f"every={every} fraction={fraction} seed={seed}",
            },
            profile=profile,
            predictors=CORE_PREDICTORS if profile == "core" else tuple(PREDICTORS),
            deep=deep_every > 0,
            on_full=on_full,
            max_bytes=max_log_bytes,
        )
        self.meters = Meters(model, score, optimizer, setting)
        self.loss_forward_is_before: bool | None = None
        self.window = Window()
        self._held_out: list[Micro] = []
        self._held_out_source = "given"
        self._fixed: list[Micro] = []
        self._notes: dict[str, Any] = {}
        self._measurement: StepMeasurement | None = None
        self._metrics: dict[str, Any] | None = None
        self.last_row: dict[str, Any] = {}
        self._time_before = 0.0
        self._closed = False
        self._responses = to_rows.NewResponses()
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    @property
    def scorer(self) -> Scorer:
        """No-grad passes as the loss forward runs, shared with the probe's own."""
        return self.meters.training

    def record(
        self, inputs: Any, batch: TokenBatch, stats: TokenStats | None = None
    ) -> TokenStats:
        """The loss forward of one micro-batch: score(inputs), its gradients under watch; `stats`
        is that forward where `meters.forward(inputs)` has made it already."""
        if self._closed:
            raise RuntimeError("probe.record after probe.close: the log has ended")
        self.commit()
        stats = stats or self.meters.forward(inputs)
        first = sum(len(r.batch.mask) for r in self.window.records)
        self.window.add(inputs, numbered(batch, (self.step << 32) + first), stats)
        return stats

    def discard(self) -> None:
        """Forget what was recorded since the last step: its update is skipped (overflow, NaN)."""
        self.window.close()
        self.window = Window()

    def annotate(self, *, weight: Tensor | float | None = None, flags: Tensor | None = None):
        """What the method did to the micro-batch recorded last: weight (B, T), flags (B, T) u8."""
        if not self.window.records:
            raise RuntimeError("probe.annotate speaks of the last record(): call record() first")
        record = self.window.records[-1]
        if weight is not None:
            record.weight = torch.ones_like(record.stats.logp) * weight
        if flags is not None:
            record.flags = record.flags | flags

    def hold_out(self, micros: Sequence[Micro], source: str = "given") -> None:
        """Rows that the coming step does not train on; measured around it like its own."""
        self._held_out = numbered_all(micros, (self.step << 32) + (1 << 31))
        self._held_out_source = source

    def fix(self, micros: Sequence[Micro], *, save: bool = True) -> None:
        """The fixed probe set: the same responses around every probed step of the run."""
        self._fixed = numbered_all(micros, -1 << 32)
        if save:
            parts = [(batch, self.meters.main.measure(inputs)) for inputs, batch in self._fixed]
            self.writer.fixed(to_rows.fixed_columns(parts))

    def note(self, **scalars: float | int | str | bool) -> None:
        """Values for the coming row of steps: kappa, grad_norm, rollout, method_*."""
        self._notes |= scalars

    def samples(self, columns: dict[str, Any]) -> None:
        """Rows of the samples table (prompt and response text, rewards)."""
        self.writer.samples(columns)

    def inclusion_prob(self, size: int) -> float:
        """The chance of one of a micro-batch's `size` responses to be probed in a probed step."""
        return inclusion_prob(self.cadence.fraction, size)

    def commit(self, **metrics: Any) -> dict[str, Any]:
        """End the step that was just taken: its line in metrics.jsonl, with the caller's values.

        Called by the next `record` and by `close` where the loop does not call it.
        """
        if self._metrics is None:
            return {}
        line, self._metrics = {**self._metrics, **metrics}, None
        self.writer.commit(line)
        return line

    def flush(self) -> None:
        """Make every row so far durable; parts of the log end here."""
        self.commit()
        self.writer.flush()

    def close(self, status: str = "finished") -> None:
        """Write what is left, take the hooks off, and give the run its final status; once."""
        if self._closed:
            return
        self._closed = True
        for handle in self._handles:
            handle.remove()
        self.meters.close()
        self.window.close()
        self.commit()
        self.writer.close(status=status)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with suppress(RunError):  # the first error is the one to report
            self.close("interrupted" if kind is KeyboardInterrupt else "failed")

    def _before_step(self, _: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        started = time.perf_counter()
        if kwargs.get("closure") or any(a is not None for a in args[1:]):
            raise RuntimeError(
                "the probe cannot measure optimizer.step(closure): run backward, then plain step()"
            )
        self.window.keep_pushed()
        if not self.window.records:
            return
        self._measurement = m = StepMeasurement(self.step, mean_lr(self.optimizer))
        if self.cadence.probes(self.step):
            self._measure_before(m)
        self._time_before = time.perf_counter() - started

    def _measure_before(self, m: StepMeasurement) -> None:
        self.loss_forward_is_before = measure_before_step(
            m,
            self.window,
            self.meters,
            self.cadence,
            self._held_out,
            self._fixed,
            self.loss_forward_is_before,
        )
        deep, checks = self.cadence.deep(self.step), self.cadence.checks(self.step)
        if checks or (deep and "kappa" not in self._notes):
            run_checks(m, self.window, self.meters, self._notes.get("kappa"))
        if deep:
            rows = {"train": m.train, "held_out": m.held or m.watch, "fixed": m.watch}
            of = rows[self.entropy_of] or m.train
            m.deep = begin(self.meters.deep, self.optimizer, of, self.snapshots)
        if checks:
            own = m.deep and m.deep.path
            m.start = own or ParameterPath.begin(self.scorer.model, self.snapshots)

    def _after_step(self) -> None:
        m = self._measurement
        if m is None:
            return
        started = time.perf_counter()
        m.measure_after(self.meters)
        m.measure_floor(self.meters)
        m.measure_deep(self.meters, self.optimizer, self.window, self._notes, self.jvp)
        predicted = predict_window(self.window, m.lr)
        write_token_rows(m, self.window, predicted, self.writer)
        if self.write_samples:
            self._write_samples()
        row = m.summary(self.window, predicted)
        row["heldout_source"] = self._held_out_source if m.held else "fixed" if m.watch else ""
        row |= {"measured_in": self.meters.dtype, "policy": self.meters.policy, **self._notes}
        self.writer.step(row)
        self.last_row = row
        kept = [*STEP_METRICS, *(key for key in row if key.startswith("method_"))]
        self._metrics = {key: row[key] for key in kept if key in row}
        self.window.close()
        self.window, self._measurement = Window(), None
        self._held_out, self._notes = [], {}
        self.step += 1
        self._metrics["time_probe"] = self._time_before + time.perf_counter() - started

    def _write_samples(self) -> None:
        """A row for every response that no earlier step has written one for."""
        for r in self.window.records:
            share = self.inclusion_prob(len(r.batch.mask))
            columns = to_rows.sample_columns(r.batch, self.step, share)
            new = self._responses.take(columns["uid"].tolist())
            self.writer.samples({name: values[new] for name, values in columns.items()})
