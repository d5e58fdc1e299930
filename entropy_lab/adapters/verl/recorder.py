"""The run directory of one verl engine, measured around each of its optimizer steps."""

from __future__ import annotations

import atexit
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entropy_lab.adapters.verl import ranks
from entropy_lab.adapters.verl.data import padded, token_batch
from entropy_lab.adapters.verl.engine import (
    clip_factor,
    device_of,
    end_tokens,
    flag,
    grad_norm,
    learning_rate,
    loss_scale,
)
from entropy_lab.adapters.verl.guard import Guard
from entropy_lab.adapters.verl.identity import Identity
from entropy_lab.adapters.verl.measure import measure, share_of_rows
from entropy_lab.adapters.verl.rundir import loss_mode, open_run_dir
from entropy_lab.adapters.verl.settings import Settings
from entropy_lab.adapters.verl.step import Share, flags_of, predict, spread, step_row, token_rows
from entropy_lab.adapters.verl.watch import Watch
from entropy_lab.errors import RunError
from entropy_lab.probe.rows import sample_columns
from entropy_lab.probe.sampling import is_every_nth, is_probed, sampled_rows
from entropy_lab.probe.step import STEP_METRICS
from entropy_lab.record import RunWriter
from entropy_lab.record.schema import profile_predictors
from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

logger = logging.getLogger("entropy_lab.adapters.verl")
NAN = float("nan")


@dataclass
class _Open:
    """The step under way."""

    probed: bool
    rows: Tensor | None = None  # of this rank, None for all
    inclusion_prob: float = 1.0
    batch: TokenBatch | None = None
    before: TokenStats | None = None
    loss_scale: float = 1.0
    repeat: float = NAN
    watch: Watch | None = None
    ok: bool = True
    seconds: float = 0.0


class Recorder:
    """Around every `train_batch` of an engine: `begin`, the update with `watch`, then `end`.

    Every rank makes the same passes; ranks with output (one for each data-parallel rank) write
    tokens/rank=RRRR and samples/rank=RRRR, the first of them the rest. A step whose measurement
    fails on any rank has no rows on any, and a failure makes all ranks leave out a growing number
    of probed steps; a writer that fails ends the measuring on all of them.
    """

    def __init__(self, engine: Any, settings: Settings, config: Any) -> None:
        self.settings = settings
        self.step = self.rollout = self.age = 0
        self.rank = int(engine.get_data_parallel_rank())
        self._config = config
        self._source = bool(engine.is_mp_src_rank_with_outputs())
        self._identity = Identity(self.rank)
        self._predictors = profile_predictors(settings.profile)
        self._method = loss_mode(config).startswith("entropy_lab_")
        self._writer: RunWriter | None = None
        self._guard = Guard(settings.run_dir, self.rank, settings.strict)
        self._started = self._dead = self._ended = False
        self._failures, self._known_failures, self._resume_at = 0, 0, 0
        self._samples: set[int] = set()
        self._now: _Open | None = None

    def begin(self, engine: Any, data: Any) -> None:
        """Before the update: choose the rows, and measure them."""
        started = time.perf_counter()
        if not self._started:
            self._start(engine, data)
        self._now = now = _Open(self._probes(engine), loss_scale=loss_scale(engine))
        if now.probed:
            self._attempt("before", lambda: self._before(engine, data, now))
        now.seconds = time.perf_counter() - started

    def watch(self, loss_function: Callable) -> Watch:
        """The loss function with its gradients under watch, in a probed step."""
        assert self._now is not None

        def failed(error: Exception) -> None:
            if self.settings.strict:
                raise error
            if self._now is not None:
                self._now.ok = False
            self._guard.note("gradients", self.step, error)

        watch = Watch(loss_function, self.step, self.rank, self._now.probed, failed)
        self._now.watch = watch
        return watch

    def end(self, engine: Any, data: Any, outputs: Any) -> None:
        """After the update: measure the rows again, and write what is known of the step."""
        now, started = self._now, time.perf_counter()
        self._now = None
        if now is None:
            return
        own: list[tuple[Share, Tensor]] = []
        if now.probed:
            self._attempt("after", lambda: own.extend(self._after(engine, data, now)), now)
        whole = self._exchange(own[0][0] if own and now.ok else None) if now.probed else None
        norm = grad_norm(outputs)
        row = self._plain_row(engine, data, norm, bool(whole))
        if whole is not None and self._source:
            keep = own[0]
            self._attempt("rows", lambda: row.update(self._rows(keep, whole, row, now)))
        row["time_probe"] = now.seconds + time.perf_counter() - started
        if self._source and not self._dead:
            self._attempt("write", lambda: self._commit(row))
        self._next(data)

    def give_up(self, error: Exception) -> None:
        """Nothing more is measured, for a reason that nobody foresaw."""
        self._now, self._dead = None, True
        self._guard.note("adapter", self.step, error)

    def discard(self) -> None:
        """The update raised an error: nothing of it is logged."""
        self._now = None

    def close(self, status: str = "finished") -> None:
        """Write what is left; once."""
        if self._ended or self._writer is None:
            return
        self._ended = True
        writer = self._writer
        self._guard.attempt("close", self.step, lambda: writer.close(status))
        if self._guard.counts and self.rank == 0:
            logger.warning("entropy-lab, events of rank 0: %s", dict(self._guard.counts))

    def _attempt(self, kind: str, action: Callable[[], object], now: _Open | None = None) -> None:
        error = self._guard.attempt(kind, self.step, action)
        if error is None:
            return
        self._failures += 1
        self._dead |= isinstance(error, RunError)  # the writer writes no more
        for step in (now, self._now):
            if step is not None:
                step.ok = False

    def _start(self, engine: Any, data: Any) -> None:
        """Open the run directory, on the first step; all ranks learn whether all of them could."""
        self._started = True
        opened = open_run_dir(engine, data, self.settings, self._config)
        self._guard, self._writer, self._dead = opened
        if not self._dead:
            atexit.register(self.close)

    def _probes(self, engine: Any) -> bool:
        """Whether this step is probed: the same on every rank."""
        if self._dead and ranks.world_size() == 1:
            return False
        if not is_probed(self.step, self.settings.every):
            return False
        dead, failures = ranks.largest([int(self._dead), self._failures], device_of(engine))
        self._dead, self._failures = bool(dead), failures
        if failures > self._known_failures:
            self._known_failures = failures
            self._resume_at = self.step + self.settings.every * (2 ** min(failures, 8) - 1)
        return not self._dead and self.step >= self._resume_at

    def _before(self, engine: Any, data: Any, now: _Open) -> None:
        s, size = self.settings, len(data)
        count = share_of_rows(data, s.fraction)
        if count < size:
            now.rows = sampled_rows(s.seed, self.step, self.rank, size, count / size)
            now.inclusion_prob = count / size
        width = padded(data["responses"]).shape[1]
        now.before = measure(engine, data, now.rows, width)
        if is_every_nth(self.step, s.every, s.repeat_every):
            again = measure(engine, data, now.rows, width)
            if again is not None and now.before is not None:
                now.repeat = float((again.entropy - now.before.entropy).abs().max())
        if self._source:
            at = {"step": self.step, "age": self.age, "seed": s.seed}
            now.batch = token_batch(data, self._identity, ends=end_tokens(engine), **at)

    def _after(self, engine: Any, data: Any, now: _Open) -> list[tuple[Share, Tensor]]:
        """This rank's rows and their micro-batches; [] where a part is lacking or not its own."""
        if not now.ok and ranks.world_size() == 1:
            return []
        width = padded(data["responses"]).shape[1]
        after = measure(engine, data, now.rows, width)  # every rank, as before the step
        watch, batch = now.watch, now.batch
        if not (now.ok and watch and batch and now.before and after):
            return []
        size = len(batch.mask)
        seen = watch.collect(size, width, 1 / (watch.dp_size * now.loss_scale))
        watch.release()
        rows = torch.arange(size) if now.rows is None else now.rows
        probed = torch.zeros(size, dtype=torch.bool)
        probed[rows] = True
        before = spread(now.before, rows, size)
        before = replace(before, logp=torch.where(probed[:, None], before.logp, seen["logp"]))
        share = Share(
            batch,
            before,
            spread(after, rows, size),
            TokenGrad(seen["grad_logp"], seen["grad_entropy"]),
            seen["weight"],
            flags_of(batch, seen["flags"]),
            probed,
        )
        return [(share, seen["micro"])]

    def _exchange(self, own: Share | None) -> tuple[Share, slice] | None:
        """The step of all ranks and where this one's rows stand; None where a part is lacking."""
        parts = ranks.gathered(own if self._source else "no output")
        if any(p is None for p in parts):
            self._failures += int(own is not None)
            return None
        shares = [p for p in parts if isinstance(p, Share)]
        first = 0
        for p in parts[: ranks.world_rank()]:
            first += len(p.probed) if isinstance(p, Share) else 0
        size = len(own.probed) if own is not None else 0
        return Share.join(shares), slice(first, first + size)

    def _plain_row(self, engine: Any, data: Any, norm: float, probed: bool) -> dict[str, Any]:
        return {
            "step": self.step,
            "rollout": self.rollout,
            "age": self.age,
            "probed": probed,
            "lr": learning_rate(engine),
            "grad_norm": norm,
            "kappa": clip_factor(engine, norm),
            "n_tokens": int(flag(data, "batch_num_tokens", 0)),
        }

    def _rows(
        self, own: tuple[Share, Tensor], whole: tuple[Share, slice], row: dict, now: _Open
    ) -> dict[str, Any]:
        """Hand the token rows of this rank to the writer; the step's scalars, for rank 0."""
        (share, micro), (everything, mine) = own, whole
        if not math.isfinite(row["grad_norm"]):
            self._guard.note("skipped_step", self.step, "gradients not finite: verl left it out")
            return {"probed": False}
        predicted = predict(everything, self._predictors, row["lr"])
        width = share.weight.shape[1]
        slices = {name: value[mine, :width] for name, value in predicted.items()}
        prob = now.inclusion_prob
        assert self._writer is not None
        rows = token_rows(share, slices, micro, self.step, prob, self._writer.token_columns)
        scalars: dict[str, Any] = {}
        if self.rank == 0:
            scalars = step_row(everything, predicted, prob, self._method)
            scalars |= {"repeat_max": now.repeat, "measured_in": "same", "policy": "master"}
        self._writer.tokens(rows)
        self._write_samples(share.batch, prob)
        return scalars

    def _write_samples(self, batch: TokenBatch, inclusion_prob: float) -> None:
        assert self._writer is not None
        columns = sample_columns(batch, self.step, inclusion_prob)
        known = columns["uid"].tolist()
        new = [u not in self._samples for u in known] & (columns["length"] > 0)
        self._samples.update(known)
        if new.any():
            self._writer.samples({name: values[new] for name, values in columns.items()})

    def _commit(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            return
        if self.rank == 0:
            self._writer.step(row)
        kept = {*STEP_METRICS, "time_probe"} & row.keys()
        self._writer.commit({name: value for name, value in row.items() if name in kept})

    def _next(self, data: Any) -> None:
        """Count on; with the last minibatch of a rollout the rows so far are made durable."""
        self.step, self.age = self.step + 1, self.age + 1
        if not flag(data, "update_lr_scheduler", True):
            return
        self.rollout, self.age = self.rollout + 1, 0
        self._identity.begin(self.rollout)
        self._samples = set()
        if self._writer is not None and not self._dead:
            self._attempt("write", self._writer.flush)
