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
from entropy_lab.probe.deep import begin, finish
from entropy_lab.probe.path import Path as ParameterPath
from entropy_lab.probe.predict import predict_window
from entropy_lab.probe.sampling import inclusion_prob
from entropy_lab.probe.scorer import Score, Scorer
from entropy_lab.probe.step import (
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

    Three lines in any PyTorch loop::

        probe = Probe(model, optimizer, "runs/mine", score)   # once
        stats = probe.record(inputs, batch)                   # instead of score(inputs)
        probe.close()                                         # at the end

    `score(inputs) -> TokenStats` runs the model on one micro-batch (see `token_stats`). Both
    passes of a step call it on the same objects, without gradients. dH = H(theta') - H(theta)
    in nats for each token; the weights of the run are bitwise those of a run without the probe.

    `inputs` is a tensor or a container of tensors whose first axis is the response, and `score`
    depends on nothing else but the parameters, so that some responses can be measured alone.

    every, fraction: probe each `every`-th step (0: none) on this share of each micro-batch's
    responses. floor_every: every so many probed steps the gradient audit, the repeat check and
    the noise floor run. deep_every (0: never): likewise the path forms and the influence, for
    SGD, Adam and AdamW; jvp: "forward" by forward-mode AD, "slope" by finite differences along
    the path; entropy_of: the rows whose mean entropy influence refers to. run_dir is created; to
    continue a run pass `start_step` after `record.rewind`.
    Raises RunError where run_dir holds a run already or cannot be written.
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
        jvp: Literal["forward", "slope"] = "forward",
        entropy_of: Literal["train", "held_out", "fixed"] = "train",
        profile: Literal["core", "full"] = "full",
        seed: int = 0,
        temperature: float = 1.0,
        config: dict[str, Any] | None = None,
        start_step: int | None = None,
        write_samples: bool = True,
        on_full: Literal["block", "drop"] = "block",
    ):
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}")
        if min(every, floor_every, deep_every) < 0:
            raise ValueError(
                "every, floor_every and deep_every must be >= 0, got "
                f"{every}, {floor_every}, {deep_every}"
            )
        if deep_every:
            check_supported(optimizer)
        self.optimizer = optimizer
        self.cadence = Cadence(every, fraction, floor_every, deep_every, seed)
        self.jvp: Literal["forward", "slope"] = jvp
        self.entropy_of = entropy_of
        if start_step is None:
            create_run(run_dir, config or {}, seeds={"seed": seed}, extra={})
        self.step = start_step or 0
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
        )
        self.scorer = Scorer(model, score, optimizer)
        self.write_samples = write_samples
        self.loss_forward_is_before: bool | None = None
        self.window = Window()
        self._held_out: list[Micro] = []
        self._held_out_source = "given"
        self._fixed: list[Micro] = []
        self._notes: dict[str, Any] = {}
        self._measurement: StepMeasurement | None = None
        self._metrics: dict[str, Any] | None = None
        self.last_row: dict[str, Any] = {}
        self._closed = False
        self._written: set[int] = set()
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def record(self, inputs: Any, batch: TokenBatch) -> TokenStats:
        """The loss forward of one micro-batch: score(inputs), its gradients under watch."""
        if self._closed:
            raise RuntimeError("probe.record after probe.close: the log has ended")
        self.commit()
        stats = self.scorer.score(inputs)
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
            self.writer.fixed(_fixed_columns(self._fixed, self.scorer))

    def note(self, **scalars: float | int | str | bool) -> None:
        """Values for the coming row of steps: kappa, grad_norm, rollout, method_*."""
        self._notes.update(scalars)

    def samples(self, columns: dict[str, Any]) -> None:
        """Rows of the samples table (prompt and response text, rewards)."""
        self.writer.samples(columns)

    def inclusion_prob(self, size: int) -> float:
        """The chance of a response in a micro-batch of `size` to be probed in a probed step."""
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
        self.scorer.close()
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
        if kwargs.get("closure") or any(a is not None for a in args[1:]):
            raise RuntimeError(
                "the probe cannot measure optimizer.step(closure): run backward, then plain step()"
            )
        self.window.keep_pushed()
        if not self.window.records:
            return
        self._measurement = m = StepMeasurement(self.step, mean_lr(self.optimizer))
        if not self.cadence.probes(self.step):
            return
        self.loss_forward_is_before = measure_before_step(
            m,
            self.window,
            self.scorer,
            self.cadence,
            self._held_out,
            self._fixed,
            self.loss_forward_is_before,
        )
        deep, checks = self.cadence.deep(self.step), self.cadence.checks(self.step)
        if checks or (deep and "kappa" not in self._notes):
            run_checks(m, self.window, self.scorer, self._notes.get("kappa"))
        if deep:
            rows = {"train": m.train, "held_out": m.held or m.watch, "fixed": m.watch}
            m.deep = begin(self.scorer, self.optimizer, rows[self.entropy_of] or m.train)
        if checks:
            m.start = m.deep.path if m.deep else ParameterPath.begin(self.scorer.model)

    def _after_step(self) -> None:
        m = self._measurement
        if m is None:
            return
        m.measure_after(self.scorer)
        m.measure_floor(self.scorer)
        if m.deep is not None:
            kappa = float(self._notes.get("kappa", m.checks.get("kappa", 1.0)))
            m.result = finish(
                m.deep, self.scorer, self.optimizer, self.window, m.train, kappa, self.jvp
            )
        predicted = predict_window(self.window, m.lr)
        write_token_rows(m, self.window, predicted, self.writer)
        if self.write_samples:
            self._write_samples()
        source = self._held_out_source if m.held else "fixed" if m.watch else ""
        row = {**m.summary(self.window, predicted), "heldout_source": source, **self._notes}
        self.writer.step(row)
        self.last_row = row
        methods = [key for key in row if key.startswith("method_")]
        self._metrics = {key: row[key] for key in [*_METRICS, *methods] if key in row}
        self._metrics["time_probe"] = time.perf_counter() - m.started
        self.window.close()
        self.window, self._measurement = Window(), None
        self._held_out, self._notes = [], {}
        self.step += 1

    def _write_samples(self) -> None:
        """A row for every response that no earlier step has written one for."""
        for r in self.window.records:
            share = self.inclusion_prob(len(r.batch.mask))
            columns = to_rows.sample_columns(r.batch, self.step, share)
            new = [uid not in self._written for uid in columns["uid"].tolist()]
            self._written.update(columns["uid"].tolist())
            self.writer.samples({name: values[new] for name, values in columns.items()})


_METRICS = (
    "step rollout age entropy_token_mean entropy_seq_mean dH_train dH_heldout dH_fixed "
    "entropy_fixed clip_high_frac clip_low_frac dual_clip_frac touched_share grad_norm kappa lr "
    "gradient_audit"
).split()


def _fixed_columns(micros: Sequence[Micro], scorer: Scorer) -> to_rows.Columns:
    parts = []
    for inputs, batch in micros:
        stats, mask = scorer.measure(inputs), batch.mask
        assert batch.uid is not None
        pos = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        uid = batch.uid[:, None].expand(mask.shape)
        named = {"uid": uid, "pos": pos, "token_id": batch.token_id, "logp": stats.logp,
                 "entropy": stats.entropy}  # fmt: skip
        parts.append({k: v[mask].cpu() for k, v in named.items()})
    return {k: torch.cat([p[k] for p in parts]).numpy() for k in parts[0]}
