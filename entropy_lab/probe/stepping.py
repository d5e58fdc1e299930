"""What a probe does around an optimizer step, whoever tells it of one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from entropy_lab.probe.around import Around
from entropy_lab.probe.guard import Guard
from entropy_lab.probe.log import StepLog
from entropy_lab.probe.meters import Meters
from entropy_lab.probe.optimizers import (
    Optimizers,
    StepHooks,
    found_inf,
    grads_are_gone,
    mean_lr,
)
from entropy_lab.probe.replicas import Replicas
from entropy_lab.probe.step import Cadence, Micro, StepMeasurement
from entropy_lab.probe.window import Window
from entropy_lab.record import RunWriter


class Stepping:
    """The step at hand: its window of micro-batches, and before_step and after_step around it.

    The optimizers' hooks call both. Around an update that no torch optimizer makes they are called
    by hand, with `learning_rate` set. loss_scale: the factor that the loss is multiplied with at
    present (None: 1). grads_in_place: whether `.grad` of the parameters holds the gradients until
    they are zeroed, so that an update that was skipped shows.
    """

    def __init__(
        self,
        guard: Guard,
        log: StepLog,
        around: Around,
        meters: Meters,
        optimizers: Optimizers,
        replicas: Replicas,
        step: int,
    ) -> None:
        self.guard, self.log, self.meters, self.step = guard, log, meters, step
        self.optimizers, self.replicas = optimizers, replicas
        self.loss_scale: Callable[[], float] | None = None
        self.learning_rate: Callable[[], float] = lambda: mean_lr(optimizers)
        self.grads_in_place = True
        self.window = Window()
        self._around = around
        self._held_out: list[Micro] = []
        self._held_out_source = "given"
        self._fixed: list[Micro] = []
        self._notes: dict[str, Any] = {}
        self._measurement: StepMeasurement | None = None
        self._time_before = self._began = 0.0
        self._closed = False
        self._hooks = StepHooks(optimizers, self._on_step, self.after_step, self._not_all_stepped)

    @property
    def writer(self) -> RunWriter:
        return self.log.writer

    @property
    def last_row(self) -> dict[str, Any]:
        """The row of steps of the last step."""
        return self.log.last_row

    @property
    def cadence(self) -> Cadence:
        """Which steps and rows are measured; backing off changes it."""
        return self._around.cadence

    @cadence.setter
    def cadence(self, cadence: Cadence) -> None:
        self._around.cadence = cadence

    def discard(self, why: str = "probe.discard() was called") -> None:
        """Forget what was recorded since the last step: its update is skipped (overflow, NaN)."""
        if self.window.records or self.window.spoiled:
            self.guard.note("skipped_step", self.step, f"the optimizer step was skipped: {why}")
        self.window.close()
        self.window, self._measurement = Window(), None
        self._held_out, self._notes = [], {}

    def end_iteration(self, why: str) -> None:
        """An iteration of the loop is over: what has been recorded and backpropagated and met no
        optimizer step in it was skipped, for the reason `why`."""
        self._hooks.end()
        if self.window.pushed:
            self.discard(why)

    def _forget_skipped(self) -> None:
        """Discard a window whose gradients are gone, though no optimizer has stepped on them."""
        if self.grads_in_place and self.window.pushed and grads_are_gone(self.optimizers):
            self.discard("its gradients were dropped before optimizer.step()")

    def _on_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if found_inf(optimizer):
            self.discard("GradScaler met an overflow")
            return
        closure = bool(kwargs.get("closure")) or any(a is not None for a in args[1:])
        self.before_step(closure)

    def _not_all_stepped(self, left: int) -> None:
        count = len(self.optimizers)
        reason = f"{left} of {count} optimizers have not stepped with the others"
        self.guard.note("not_all_stepped", self.step, reason)

    def before_step(self, closure: bool = False) -> None:
        """Measure before the weights move. The optimizers' hooks call it; call it by hand, with
        `after_step`, around an update that no torch optimizer makes (optimizer = [])."""
        started = time.perf_counter()
        self._measurement = None
        if self.log.ended or self._closed:
            return
        failed = self.guard.attempt("before", self.step, lambda: self._begin(closure))
        self.window.spoiled = self.window.spoiled or failed
        if self.window.spoiled and self._measurement is None:
            self._measurement = StepMeasurement(self.step, float("nan"), failed=failed)
        self._time_before = time.perf_counter() - started

    def _begin(self, closure: bool) -> None:
        if closure:
            raise RuntimeError(
                "the probe cannot measure optimizer.step(closure): run backward, then plain step()"
            )
        self.window.keep_pushed()
        self.window.share(self._around.world)
        if not self.window.records:
            return
        scale = self.replicas.size * (1.0 if self.loss_scale is None else self.loss_scale())
        if scale != 1:
            self.window.divide(scale)
        if not self.window.finite():
            self.guard.note("not_finite", self.step, "the loss has NaN or infinite gradients")
        self._measurement = m = StepMeasurement(
            self.step, self.learning_rate(), world=self._around.world
        )
        if self.cadence.probes(self.step) and not self.window.spoiled:
            kappa = self._notes.get("kappa")
            self._around.before(m, self.window, self._held_out, self._fixed, kappa)

    def after_step(self) -> None:
        """Measure again and write the step's rows; see before_step."""
        m = self._measurement
        if m is None:
            self.log.share(None, self.step)
            self.log.unlogged += self.log.ended
            return
        started = time.perf_counter()
        try:
            self.meters.forget()
            self._around.after(m, self.window, self._notes)
            source = self._held_out_source if m.held else "fixed" if m.watch else ""
            extra = {"heldout_source": source, "measured_in": self.meters.dtype}
            extra |= {"policy": self.meters.policy, **self._notes}
            self.log.step(m, self.window, self.cadence.fraction, extra)
        except BaseException as error:  # the step is taken: what is left of it must not go on
            if not self.guard.strict:
                self.log.failed_step(self.step, type(error).__name__)
            raise
        finally:
            self.window.close()
            self.window, self._measurement = Window(), None
            self._held_out, self._notes = [], {}
            self.step += 1
            now = time.perf_counter()
            self.log.times(self._time_before + now - started, now - self._began)
