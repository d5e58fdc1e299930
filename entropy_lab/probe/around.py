"""The measurements around an optimizer step, each of which may fail without the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from entropy_lab.probe.deep import Jvp, begin
from entropy_lab.probe.guard import OUT_OF_MEMORY, Guard
from entropy_lab.probe.memory import MemoryCap
from entropy_lab.probe.meters import Meters
from entropy_lab.probe.optimizers import Optimizers
from entropy_lab.probe.path import Path
from entropy_lab.probe.step import (
    Cadence,
    Micro,
    StepMeasurement,
    measure_before_step,
    run_checks,
)
from entropy_lab.probe.window import Window
from entropy_lab.probe.world import ALONE, World

EntropyOf = Literal["train", "held_out", "fixed"]
PATIENCE = 8  # failed steps in a row after which nothing more is measured


class Around:
    """Measures a step's rows before and after it, as `cadence` says, and backs off.

    Out of memory: the step goes unmeasured, and later ones take half as many rows; where a pass
    has one response left, none. Path forms that meet it are given up. Other errors cost the step
    (or, in the checks and path forms, only those), and after PATIENCE such steps in a row nothing
    more is measured. A `guard` that is strict raises instead. audited: whether the gradients in
    `.grad` are those of this process's own rows, so that the gradient audit means something. world:
    the processes that measure the step together.
    """

    def __init__(
        self,
        meters: Meters,
        optimizers: Optimizers,
        cadence: Cadence,
        guard: Guard,
        memory: MemoryCap,
        *,
        jvp: Jvp,
        entropy_of: EntropyOf,
        snapshots: str | None,
        audited: bool = True,
        world: World = ALONE,
    ) -> None:
        self.meters, self.optimizers, self.cadence = meters, optimizers, cadence
        self.loss_forward_is_before: bool | None = None
        self._guard, self._memory = guard, memory
        self._jvp: Jvp = jvp
        self._entropy_of, self._snapshots = entropy_of, snapshots
        self._audited, self.world = audited, world
        self._in_a_row = 0

    def before(
        self,
        m: StepMeasurement,
        window: Window,
        held_out: Sequence[Micro],
        fixed: Sequence[Micro],
        kappa: float | None,
    ) -> None:
        """First pass of a probed step, the checks, and what path forms need of theta."""
        deep, checks = self.cadence.deep(m.step), self.cadence.checks(m.step)
        self.world.fill()

        def first_pass() -> None:
            self.loss_forward_is_before = measure_before_step(
                m, window, self.meters, self.cadence, held_out, fixed, self.loss_forward_is_before
            )

        def begin_deep() -> None:
            rows = {"train": m.train, "held_out": m.held or m.watch, "fixed": m.watch}
            of = rows[self._entropy_of] or m.train
            m.deep = begin(self.meters.deep, self.optimizers, of, self._snapshots, self.world)

        def keep_start() -> None:
            own = m.deep and m.deep.path
            m.start = own or Path.begin(
                self.meters.training.model, self._snapshots, world=self.world
            )

        if not self._passes("before", m, window, first_pass):
            return
        if checks or (deep and kappa is None):
            # Without it kappa is not known, and without kappa there is no influence.
            checked = self._extra("checks", m, lambda: self._checks(m, window, kappa))
            deep = deep and (checked or kappa is not None)
        if deep:
            self._extra("deep", m, begin_deep)
        if checks:
            self._extra("checks", m, keep_start)

    def _checks(self, m: StepMeasurement, window: Window, kappa: float | None) -> None:
        run_checks(m, window, self.meters, kappa, self.optimizers, self._audited)

    def after(self, m: StepMeasurement, window: Window, notes: Mapping[str, Any]) -> None:
        """Second pass, over the very objects of the first; noise floor, path forms, influence."""
        if not m.train:
            return
        self.world.fill()
        if not self._passes("after", m, window, lambda: m.measure_after(self.meters)):
            return
        self._in_a_row = 0
        self._extra("checks", m, lambda: m.measure_floor(self.meters))
        self._extra(
            "deep",
            m,
            lambda: m.measure_deep(self.meters, self.optimizers, window, notes, self._jvp),
        )

    def _passes(
        self, kind: str, m: StepMeasurement, window: Window, action: Callable[[], None]
    ) -> bool:
        """Run a pass that dH needs; where it fails the step is one that was not probed."""
        kind = self._attempt(kind, m, action)
        if kind:
            m.abandon(kind)
            self.meters.forget()
            if kind == OUT_OF_MEMORY:
                self._take_fewer_rows(m.step, window)
            self._in_a_row += 1
            if self._in_a_row >= PATIENCE and self.cadence.every:
                self._stop(m.step, f"{PATIENCE} probed steps in a row have failed")
        return not kind

    def _extra(self, kind: str, m: StepMeasurement, action: Callable[[], None]) -> bool:
        """Run what dH does not need; where it fails its columns stay empty."""
        failed = self._attempt(kind, m, action)
        if not failed:
            return True
        if kind == "deep":
            m.deep = m.result = None
        else:
            m.start = None
        if failed == OUT_OF_MEMORY:
            self.cadence = replace(
                self.cadence, **{"deep_every" if kind == "deep" else "floor_every": 0}
            )
            what = "path forms and influence" if kind == "deep" else "the checks of floor steps"
            self._guard.note("backed_off", m.step, f"out of memory: no more {what}")
        return False

    def _attempt(self, kind: str, m: StepMeasurement, action: Callable[[], None]) -> str:
        def capped() -> None:
            with self._memory.applied():
                action()

        return self._guard.attempt(kind, m.step, capped)

    def _take_fewer_rows(self, step: int, window: Window) -> None:
        largest = max((len(r.batch.mask) for r in window.records), default=1)
        share = self.cadence.fraction
        if share * largest <= 1:
            self._stop(step, "out of memory with one response a pass")
            return
        self.cadence = replace(self.cadence, fraction=share / 2)
        self._guard.note("backed_off", step, f"out of memory: fraction is {share / 2:g} from here")

    def _stop(self, step: int, why: str) -> None:
        self.cadence = replace(self.cadence, every=0)
        self._guard.note(
            "backed_off", step, f"{why}: nothing is measured from here on, the loss is still logged"
        )
