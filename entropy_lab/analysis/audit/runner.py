"""The pass over a run's steps: every method's gradient on each, and sums of what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_lab.analysis.audit.candidate import Candidate, Part, Push
from entropy_lab.analysis.audit.collapse import Collapse, splits
from entropy_lab.analysis.audit.log import Log, Rollout
from entropy_lab.analysis.audit.planned import Planned
from entropy_lab.analysis.audit.profile import Profile
from entropy_lab.analysis.audit.rebuild import LoggedStep
from entropy_lab.analysis.audit.sums import Ledger
from entropy_lab.analysis.audit.view import AXES, View
from entropy_lab.analysis.audit_tables import FORMS, INERT
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import Method
from entropy_lab.types import TokenBatch, TokenGrad

RUN = "run"  # label of the recorded gradient


@dataclass
class Runner:
    """Methods going through a log together; `reference` is one of `candidates`.

    After `go`: ledger, profile, collapse by label, sizes of parts by (label, kind, divisor), rows
    in each bin by axis, and counts of steps that were incomplete or had no recorded gradient.
    """

    log: Log
    candidates: list[Candidate]
    reference: str
    profile: Profile
    ledger: Ledger = field(default_factory=Ledger)
    collapse: dict[str, Collapse] = field(default_factory=dict)
    parts: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    rows_of: dict[str, np.ndarray] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    incomplete: int = 0
    unrecorded: int = 0
    left_out: int = 0

    @property
    def recorded(self) -> bool:
        """Whether the log has the gradient of the run's own loss."""
        return "grad_logp" in self.log.columns

    def is_own(self, candidate: Candidate) -> bool:
        """Whether it is the method that made the run, with all of its settings."""
        return candidate.method is not None and candidate.method == self.log.own

    def go(self) -> None:
        """Read every rollout once; RunError where no step can be audited."""
        states = {c.label: c.initial_state() for c in self.candidates}
        for rollout in self.log.rollouts():
            advantages = {c.label: self._advantages(c, rollout) for c in self.candidates}
            for c in self.candidates:
                batch, stats = rollout.logged
                if rebuilt := advantages[c.label]:
                    batch = replace(batch, advantage=_stacked(rebuilt, batch.advantage))
                states[c.label] = c.begin_rollout(batch, stats, states[c.label])
            for i, step in enumerate(rollout.steps):
                given = {k: a[i] if a else None for k, a in advantages.items()}
                states = self._step(step, given, states)
        if not self.steps:
            raise RunError(f"{self.log.run.path} has no training row that can be scored")
        for c in self.candidates:
            c.finish()

    def _advantages(self, candidate: Candidate, rollout: Rollout) -> list[Tensor] | None:
        """The method's own, from the rewards, where they differ from the logged ones."""
        method, own = candidate.method, self.log.own
        same = method is None or self.is_own(candidate)
        if same or not (_overrides(method) or _overrides(own)):
            return None
        try:
            found = rollout.advantages(method)
        except (ValueError, TypeError, RuntimeError) as error:
            kind = RunError if candidate.kind == "registry" else ConfigError
            raise kind(f"{candidate.label} makes its own advantages: {error}") from error
        note = "its advantages are recomputed from the rewards"
        if note not in candidate.notes:
            candidate.notes.append(note)
        return found

    def _step(
        self, step: LoggedStep, given: dict[str, Tensor | None], states: dict[str, Any]
    ) -> dict[str, Any]:
        self.steps.append(step.step)
        self.incomplete += not step.complete
        self.left_out += step.left_out
        base = given[self.reference]
        view = View.of(step, step.whole.advantage if base is None else base)
        self.ledger.begin(view.group, view.groups, view.weight)
        if self.recorded:
            missing = torch.full(step.whole.mask.shape, float("nan"))
            grad = step.recorded or TokenGrad(missing, missing)
            self.unrecorded += step.recorded is None
            view.take(RUN, Push(grad), scale=False)
        after, pushes = {}, {}
        for c in self.candidates:
            parts = _parts(step, given[c.label])
            state = self._remembered(c, step, states[c.label])
            push = c.push(parts, state)
            view.take(c.label, push)
            self._split(c, step, parts, state, push, view)
            whole = TokenBatch.cat([p.batch for p in parts])
            after[c.label] = c.end_step(whole, step.statistics, state)
            pushes[c.label] = push
        self._measure(view, pushes)
        return after

    def _remembered(self, candidate: Candidate, step: LoggedStep, state: Any) -> Any:
        """The run's own method continues from the memory that the log has of it."""
        if self.is_own(candidate) and isinstance(state, dict):
            return {key: step.memory.get(key, value) for key, value in state.items()}
        return state

    def _split(
        self, c: Candidate, step: LoggedStep, parts: list[Part], state: Any, push: Push, view: View
    ) -> None:
        own = view.c[c.label]
        # Without a scope, a method of ours takes no statistic over the batch.
        invariant = c.kind == "registry" and not hasattr(c.method, "scope")
        for kind, divisor, pieces in splits(step, parts):
            size = len(view.batch.mask) / len(pieces)
            self.parts.setdefault((c.label, kind, divisor), []).append(size)
            other = own
            if not invariant:
                other = step.flat(c.push(pieces, state, kind).grad.grad_logp) / view.weight
            self.ledger.add(
                ("scope", c.label, kind, divisor), (other - own) ** 2, own**2, other * own
            )

    def _measure(self, view: View, pushes: dict[str, Push]) -> None:
        self._count(view)
        one = np.ones(len(view.logp))
        touched = {}
        forms = {label: view.predicted(label) for label in view.c}
        for label, c in view.c.items():
            base_c, base_e = view.c[self.reference], view.e[self.reference]
            e, add = view.e[label], self.ledger.add
            touched[label] = t = view.touched(label, self.reference, INERT).astype(np.float64)
            add(("distance", label), (c - base_c) ** 2, base_c**2, c * base_c, c**2)
            logits = view.squared(c - base_c, e - base_e), view.squared(base_c, base_e)
            add(("logits", label), *logits)
            add(("entropy", label), np.abs(e))
            if RUN in view.c:
                recorded = view.c[RUN], view.e[RUN]
                differences = (c - recorded[0]) ** 2, (e - recorded[1]) ** 2
                add(("run", label), differences[0], recorded[0] ** 2)
                add(("run e", label), differences[1], recorded[1] ** 2)
                for form in FORMS:
                    x, of_run = forms[label][form], forms[RUN][form]
                    add(("difference", form, label), x - of_run, one)
            for form in FORMS:
                add(("form", form, label), forms[label][form], one)
            add(("touched", label), t, one)
            self._bins(view, label, t)
            self._weights(view, label, pushes.get(label))
        self._pairs(view, touched)
        if RUN in view.c:
            for form in FORMS:
                x = forms[RUN][form]
                self.ledger.add(("slope", form), x * view.step.dH, x * x)
        self.profile.add(view)

    def _count(self, view: View) -> None:
        for axis, names in AXES.items():
            counts = np.bincount(view.bins[axis], minlength=len(names))
            self.rows_of[axis] = self.rows_of.get(axis, 0) + counts

    def _bins(self, view: View, label: str, touched: np.ndarray) -> None:
        for axis, names in AXES.items():
            cell = view.group * len(names) + view.bins[axis]
            cells = view.groups * len(names)
            sums = [np.bincount(cell, w, cells) for w in (view.weight * touched, view.weight)]
            shaped = np.stack(sums, axis=-1).reshape(view.groups, len(names), 2)
            self.ledger.put(("bins", axis, label), shaped)

    def _weights(self, view: View, label: str, push: Push | None) -> None:
        collapse = self.collapse.setdefault(label, Collapse())
        moved = view.unclipped != 0
        weight = np.divide(view.c[label], view.unclipped, out=np.zeros_like(moved, float),
                           where=moved)  # fmt: skip
        self.ledger.add(("weight", label), moved.astype(float), weight, weight**2)
        logged = view.step.weight
        if push is None:
            seen = weight if logged is None else view.step.flat(logged)
            collapse.add_weights(seen[moved])
            return
        collapse.add_omega(push, view.batch.mask, view.step.statistics.logp)
        if push.weight is not None:
            collapse.add_weights(view.step.flat(push.weight)[moved])
        elif not push.units:  # of a loss nothing is known but its gradient
            collapse.add_weights(weight[moved])

    def _pairs(self, view: View, touched: dict[str, np.ndarray]) -> None:
        labels = list(view.c)
        for i, a in enumerate(labels):
            for b in labels[i + 1 :]:
                x, y = view.c[a], view.c[b]
                one = np.ones_like(x)
                self.ledger.add(("pair", a, b), one, x, y, x * x, y * y, x * y)
                both, either = touched[a] * touched[b], np.maximum(touched[a], touched[b])
                self.ledger.add(("jaccard", a, b), both, either)


def _parts(step: LoggedStep, advantage: Tensor | None) -> list[Part]:
    """The run's own micro-batches, with these advantages (B, T) where they are given."""
    parts, start = [], 0
    for batch, stats in zip(step.batches, step.stats, strict=True):
        rows = slice(start, start + len(batch.mask))
        start = rows.stop
        if advantage is not None:
            batch = replace(batch, advantage=advantage[rows])
        parts.append(Part(batch, stats))
    return parts


def _stacked(advantages: Sequence[Tensor], like: Tensor) -> Tensor:
    """Advantages of several steps as one (B, T), padded to the widest."""
    out, start = like.new_zeros(like.shape), 0
    for a in advantages:
        out[start : start + len(a), : a.shape[1]] = a
        start += len(a)
    return out


def _overrides(method: Any) -> bool:
    """Whether a method makes advantages other than the group-relative ones."""
    return method is not None and type(method).advantages is not Method.advantages


def stateful(candidate: Candidate) -> bool:
    """Whether a method remembers earlier steps, as far as that can be seen."""
    return isinstance(candidate, Planned) and bool(candidate.initial_state())
