"""Losses written by others: verl's registered policy losses, and loss(batch, stats) -> scalar."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from entropy_lab.analysis.audit import bugs
from entropy_lab.analysis.audit.candidate import Candidate, Leaves, Part, Push, Split, seeded
from entropy_lab.analysis.audit.verl_config import DEFAULTS, VerlConfig, actor_config
from entropy_lab.errors import ConfigError, nearest
from entropy_lab.types import TokenBatch, TokenGrad, TokenStats

VERL_INPUTS = ("old_log_prob", "log_prob", "advantages", "response_mask")
_VERL_OTHERS = ("loss_agg_mode", "config", "rollout_is_weights", "rollout_log_probs")


@dataclass
class Loss(Candidate):
    """A function of the user that returns a loss; its gradient is all that is known of it."""

    function: Callable[..., Any] = field(default=lambda: None)
    _checked: bool = False

    def _gradient(
        self, part: Part, leaves: Leaves, inputs: dict[str, Tensor], named: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        """The loss of one part, checked for the common bugs."""
        with seeded(part.batch):
            returned = bugs.called(self.label, self.function, inputs, **named)
        loss = bugs.scalar(self.label, returned)
        if not self._checked and not self.settings.get(bugs.ALLOW_PRODUCT):
            bugs.check_weights(self.label, loss)
        self._checked = True
        return loss, leaves

    def _backward(
        self, losses: Sequence[tuple[Tensor, Leaves]], parts: Sequence[Part], share: float
    ) -> Push:
        grads = []
        for loss, leaves in losses:
            bugs.backward(self.label, share * loss)
            grads.append(leaves.grad())
        whole, grad = TokenBatch.cat([p.batch for p in parts]), TokenGrad.cat(grads)
        bugs.check_gradient(self.label, grad, whole)
        return Push(grad)


@dataclass
class VerlLoss(Loss):
    """A loss with the signature of verl's registered policy losses, unmodified.

    Called as verl's trainer does, once a micro-batch, with the token and response counts of the
    whole step in config.global_batch_info; the losses of the micro-batches add up, those of ranks
    are averaged. settings are keys of config, with verl's values as defaults; loss_agg_mode is
    the function's own default where it is not set. rollout_is_weights is None.
    """

    reads: set[str] = field(default_factory=set)

    def push(self, parts: Sequence[Part], state: Any, split: Split = "own") -> Push:
        ranks = len(parts) if split == "rank" else 1
        masks = [p.batch.mask for p in parts]
        counts = {
            "dp_size": ranks,
            "batch_num_tokens": int(sum(m.sum() for m in masks)),
            "global_batch_size": int(sum(m.any(1).sum() for m in masks)),
        }
        losses = [self._loss(part, counts) for part in parts]
        return self._backward(losses, parts, 1 / ranks)

    def _loss(self, part: Part, counts: dict[str, int]) -> tuple[Tensor, Leaves]:
        batch, leaves = part.batch, Leaves.of(part.stats)
        set_ = {k: v for k, v in self.settings.items() if k != bugs.ALLOW_PRODUCT}
        values = DEFAULTS | set_
        values["global_batch_info"] = {**counts, "loss_scale_factor": values["loss_scale_factor"]}
        inputs = {
            "old_log_prob": batch.old_logp,
            "log_prob": leaves.logp,
            "advantages": batch.advantage,
            "response_mask": batch.mask,
        }
        known = {
            **inputs,
            "loss_agg_mode": self._aggregation(),
            "config": VerlConfig(values, self.reads, actor_config(self.function)),
            "rollout_is_weights": None,
            "rollout_log_probs": batch.rollout_logp,
        }
        takes = inspect.signature(self.function).parameters
        everything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        named = {k: v for k, v in known.items() if everything or k in takes}
        return self._gradient(part, leaves, inputs, named)

    def _aggregation(self) -> str:
        takes = inspect.signature(self.function).parameters
        own = takes["loss_agg_mode"].default if "loss_agg_mode" in takes else None
        default = own if isinstance(own, str) else DEFAULTS["loss_agg_mode"]
        return self.settings.get("loss_agg_mode", default)

    def finish(self) -> None:
        asked = self.reads | {"loss_agg_mode", bugs.ALLOW_PRODUCT}
        for key in self.settings:
            if key not in asked:
                self.notes.append(f"{key} was set but never read: {nearest(key, sorted(asked))}")


@dataclass
class SimpleLoss(Loss):
    """loss(batch, stats) -> scalar, over the whole optimizer step at once.

    batch: TokenBatch, stats: TokenStats whose logp and entropy carry gradient; further parameters
    of the function are its settings. Where a step is split, the losses of the parts are averaged,
    as a trainer does that divides each by the number of micro-batches.
    """

    def push(self, parts: Sequence[Part], state: Any, split: Split = "own") -> Push:
        if split == "own":
            whole = TokenBatch.cat([p.batch for p in parts])
            parts = [Part(whole, TokenStats.cat([p.stats for p in parts]))]
        losses = [self._loss(part) for part in parts]
        return self._backward(losses, parts, 1 / len(parts))

    def _loss(self, part: Part) -> tuple[Tensor, Leaves]:
        leaves = Leaves.of(part.stats)
        moments = (part.stats.m0, part.stats.m1, part.stats.m2)
        stats = TokenStats(leaves.logp, leaves.entropy, *moments)
        inputs = bugs.inputs_of(part.batch, stats)
        first, second = _positional(self.function)[:2]
        others = {k: v for k, v in self.settings.items() if k != bugs.ALLOW_PRODUCT}
        named = {first: part.batch, second: stats, **others}
        return self._gradient(part, leaves, inputs, named)


def loss_candidate(label: str, function: Callable[..., Any], params: dict[str, Any]) -> Loss:
    """A function as VerlLoss or SimpleLoss, by its signature; ConfigError where it fits neither."""
    takes = inspect.signature(function).parameters
    named = [p for p in takes.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    if set(VERL_INPUTS) <= set(names):
        known = {*VERL_INPUTS, *_VERL_OTHERS}
        lacking = [p.name for p in named if p.default is p.empty and p.name not in known]
        if lacking:
            raise ConfigError(
                f"{label} takes {lacking[0]!r}, which verl does not pass and the log does not "
                "have: give it a default"
            )
        return VerlLoss(label, "verl loss", params, function=function)
    unset = [name for name in _positional(function)[2:] if name not in params]
    if len(_positional(function)) >= 2 and (not unset or names[:2] == ["batch", "stats"]):
        for key in params:
            if key not in names[2:] and key != bugs.ALLOW_PRODUCT:
                raise ConfigError(f"{label} has no parameter {key!r}: {nearest(key, names[2:])}")
        if unset:
            raise ConfigError(f"{label} needs {unset[0]}: set it, as in FILE.py:loss:{unset[0]}=1")
        return SimpleLoss(label, "loss", params, function=function)
    raise ConfigError(
        f"{label} takes ({', '.join(takes)}): a method has plan(batch, stats, state), a loss takes "
        f"(batch, stats) or verl's arguments {', '.join(VERL_INPUTS)}"
    )


def _positional(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments that have no default and can be passed by position."""
    takes = inspect.signature(function).parameters.values()
    return [p.name for p in takes if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
