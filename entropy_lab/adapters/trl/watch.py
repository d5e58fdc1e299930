"""What is watched of a GRPOTrainer: its methods, wrapped on the instance.

Nothing of what the trainer computes is changed, unless a method was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from entropy_lab.adapters.trl.carrier import Carrier
from entropy_lab.adapters.trl.micro import loss_flags, model_inputs, token_batch
from entropy_lab.adapters.trl.rollout import (
    OLD_ENTROPY,
    Graded,
    Rollout,
    describe,
    sample_columns,
)
from entropy_lab.adapters.trl.score import FORWARD, Inputs, LossCall, TrlScore
from entropy_lab.probe import Probe
from entropy_lab.probe.window import MicroRecord
from entropy_lab.types import SELECTED, TokenBatch, TokenStats

logger = logging.getLogger("entropy_lab.trl")
Micro = dict[str, Any]


class Watch:
    """Follows a trainer from rollout to optimizer step and tells a Probe.

    probe: set once the optimizer exists; until then, and after `stop`, everything passes through.
    """

    def __init__(self, trainer: Any, carrier: Carrier | None, held_out: bool, seed: int) -> None:
        self.trainer, self.carrier, self.held_out, self.seed = trainer, carrier, held_out, seed
        self.probe: Probe | None = None
        self.score = TrlScore(trainer, getattr(trainer, FORWARD))
        self.failures = 0
        self.next_rollout = 0
        self.rollout: Rollout | None = None
        self.step_facts: dict[str, Any] = {}
        self.rewards: list[Tensor] = []
        self.lengths: list[Tensor] = []
        self.truncated: list[Tensor] = []
        self._graded: Graded | None = None
        self._scored: list[tuple[Tensor, Tensor]] = []  # logp and entropy of no-grad passes
        self._fresh = False  # a rollout whose micro-batches nobody has seen yet
        self._pending: tuple[Micro, Micro] | None = None  # as kept by TRL, and our copy
        self._last: MicroRecord | None = None  # recorded, its entropy mask not seen yet
        self.window_begins = True
        self._inputs: dict[int, tuple[Micro, Inputs]] = {}
        self._own: dict[str, tuple[Any, str, bool, Any]] = {}
        self._wrap(trainer, "_calculate_rewards", self._calculate_rewards)
        self._wrap(trainer, "_generate_and_score_completions", self._generate)
        self._wrap(trainer, "_prepare_inputs", self._prepare_inputs)
        self._wrap(trainer, FORWARD, self._forward)
        self._wrap(trainer, "get_high_entropy_mask", self._high_entropy_mask)
        self._wrap(trainer.accelerator, "clip_grad_norm_", self._clip)

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        own = getattr(owner, name)
        self._own[name] = (owner, name, name in vars(owner), own)
        setattr(owner, name, lambda *args, **kwargs: wrapper(own, *args, **kwargs))

    def stop(self) -> None:
        """Take every wrapper off."""
        self.probe = None
        for owner, name, was_its_own, own in self._own.values():
            if was_its_own:
                setattr(owner, name, own)
            else:
                vars(owner).pop(name, None)
        self._own = {}

    @property
    def training(self) -> bool:
        return self.probe is not None and self.trainer.model.training

    def safely(self, what: str, action: Callable[[], Any]) -> Any:
        """Run something of ours: what fails is the probe's event, never the trainer's."""
        probe, found = self.probe, []
        if probe is not None:
            probe.guard.attempt(what, probe.step, lambda: found.append(action()))
        return found[0] if found else None

    # What the trainer calls, in the order in which it does.

    def _generate(self, own: Callable[..., Micro], inputs: Any) -> Micro:
        if not self.training:
            return own(inputs)
        self._graded, self._scored = None, []
        output = own(inputs)
        extended = self.safely("rollout", lambda: self._identify(output))
        if self.carrier is not None:
            return self._with_advantages(self.carrier, extended)
        return output if extended is None else extended

    def _calculate_rewards(self, own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        rewards = own(*args, **kwargs)
        if self.training and len(args) == 4:
            self._graded = Graded(rewards.detach().clone(), args[1], args[3])
        return rewards

    def _identify(self, output: Micro) -> Micro:
        """The rollout's dict with who each row is."""
        assert self.probe is not None
        if self._graded is None:
            raise RuntimeError("_generate_and_score_completions did not call _calculate_rewards")
        number, self.next_rollout = self.next_rollout, self.next_rollout + 1
        self.rollout = describe(self.trainer, output, self._graded, number, self.probe.step)
        more = self.rollout.tensors()
        for logp, entropy in self._scored:
            if logp is output.get("old_per_token_logps"):
                more[OLD_ENTROPY] = entropy
        self._scored, self._fresh, self._inputs = [], True, {}
        return {**output, **more}

    def _with_advantages(self, carrier: Carrier, output: Micro | None) -> Micro:
        """The rollout with the method's own advantages, where it has some."""
        if output is None:
            raise carrier.stuck()
        unknown = torch.full_like(output["completion_ids"], float("nan"), dtype=torch.float32)
        batch = self.batch_of(output, unknown, None)
        # Responses that are masked out of the loss count in their group's baseline.
        assert self.rollout is not None
        place = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        sampled = place < self.rollout.length[:, None]  # (B, T)
        own = carrier.advantages(replace(batch, mask=sampled))
        return output if own is None else {**output, "advantages": own}

    def _prepare_inputs(self, own: Callable[..., Micro], generation_batch: Any) -> Micro:
        if self.carrier is not None:
            self.carrier.prepare()
        micro = own(generation_batch)
        if not self.training or self.rollout is None:
            return micro
        if self._fresh:
            self._fresh = False
            self.safely("samples", self._write_samples)
            if self.carrier is not None and self.carrier.reads_rollout:
                self.carrier.begin_rollout(self._pairs(self.trainer._buffered_inputs))
        if self.carrier is not None and self.window_begins and self.carrier.looks_ahead:
            self._plan_ahead(self.carrier)
        self.window_begins = False
        copy = dict(micro)  # a method writes its advantages here, never into TRL's own
        self._pending = (micro, copy)
        return copy

    def _forward(self, own: Callable[..., tuple], *args: Any, **kwargs: Any) -> tuple:
        if not self.training or self.score.busy:
            return own(*args, **kwargs)
        if not torch.is_grad_enabled():
            return self._without_grad(own, args, kwargs)
        if self._pending is None:
            return own(*args, **kwargs)
        (kept, copy), self._pending = self._pending, None
        call = LossCall(own, args, kwargs)
        done = self.safely("record", lambda: self._record(call, kept))
        result = call.run()
        if self.carrier is not None:
            if done is None:
                raise self.carrier.stuck()
            self.carrier.carry(kept, done[0], done[1], copy)
        if done is not None:
            self.safely("record", lambda: self._annotate(done[0], result[0]))
        return result

    def _without_grad(self, own: Callable[..., tuple], args: tuple, kwargs: dict) -> tuple:
        """Old log-probabilities of a rollout: the entropy is asked for as well."""
        policy = (self.trainer.model, self.trainer.model_wrapped)
        if kwargs.get("compute_entropy") or not any(args and args[0] is m for m in policy):
            return own(*args, **kwargs)  # a reference model is not asked: it may have no entropy
        result = own(*args, **{**kwargs, "compute_entropy": True})
        if result[1] is not None:
            self._scored.append((result[0], result[1]))
        return (result[0], None, *result[2:])

    def _record(self, call: LossCall, kept: Micro) -> tuple[TokenBatch, TokenStats]:
        """The loss forward of one micro-batch, told to the probe."""
        assert self.probe is not None
        inputs = self.inputs_of(kept)
        stats = self.score.loss_forward(self.probe, call, inputs)
        logp, entropy = call.run()[:2]
        batch = self.batch_of(kept, logp, stats.entropy)
        stats = stats.detach()
        self.probe.record(inputs, batch, stats, watched=(logp, entropy))
        self.step_facts["old_logp_is_logp"] = "old_per_token_logps" not in kept
        self._remember(batch)
        return batch, stats

    def _annotate(self, batch: TokenBatch, logp: Tensor) -> None:
        """What the loss does to each token: the method's plan, then TRL's clips and masks."""
        assert self.probe is not None
        if self.carrier is not None:
            self.probe.annotate(weight=self.carrier.weight, flags=self.carrier.flags)
        record = self.probe.window.records[-1]
        record.flags |= loss_flags(self.trainer, batch, logp)
        self._last = record if self.trainer.top_entropy_quantile < 1.0 else None

    def _high_entropy_mask(self, own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        kept = own(*args, **kwargs)
        record, self._last = self._last, None
        if self.training and record is not None:
            record.weight = record.weight * kept
            dropped = record.batch.mask & ~kept.bool()
            record.flags = record.flags | SELECTED * dropped.to(torch.uint8)
        return kept

    def _clip(self, own: Callable[..., Any], parameters: Any, max_norm: Any, *args: Any) -> Any:
        norm = own(parameters, max_norm, *args)
        if self.probe is not None and norm is not None:
            value, limit = float(norm), float(max_norm)
            kappa = min(1.0, limit / (value + 1e-6)) if limit > 0 else 1.0
            self.step_facts |= {"grad_norm": value, "kappa": kappa}
        return norm

    # What the above is made of.

    def inputs_of(self, micro: Micro) -> Inputs:
        """The same object for the same micro-batch, so that a pass is made once."""
        known = self._inputs.get(id(micro))
        if known is None or known[0] is not micro:
            known = self._inputs[id(micro)] = (micro, model_inputs(micro))
        return known[1]

    def batch_of(self, micro: Micro, logp: Tensor | None, entropy: Tensor | None) -> TokenBatch:
        assert self.probe is not None and self.rollout is not None
        age = self.probe.step - self.rollout.step
        return token_batch(micro, logp, entropy, age=age, step=self.probe.step, seed=self.seed)

    def _remember(self, batch: TokenBatch) -> None:
        """For the means over the step's responses in its line of metrics.jsonl."""
        assert batch.reward is not None and batch.truncated is not None
        self.rewards.append(batch.reward)
        self.lengths.append(batch.mask.sum(1))
        self.truncated.append(batch.truncated)

    def response_means(self) -> dict[str, float]:
        """Means over the responses of the step that was taken; forgets them."""
        if not self.rewards:
            return {}
        means = {
            "reward": float(torch.cat(self.rewards).double().nanmean()),
            "response_length": float(torch.cat(self.lengths).double().mean()),
            "truncated_share": float(torch.cat(self.truncated).double().mean()),
        }
        self.rewards, self.lengths, self.truncated = [], [], []
        return means

    def _write_samples(self) -> None:
        assert self.probe is not None and self.rollout is not None
        trainer = self.trainer
        each = trainer.current_gradient_accumulation_steps
        begun = trainer._step % each
        place = [divmod(begun + k, each) for k in range(len(trainer._buffered_inputs))]
        columns = sample_columns(
            self.rollout, trainer._buffered_inputs, place, self.probe.inclusion_prob
        )
        self.probe.samples(columns)

    def _pairs(self, micros: Sequence[Micro]) -> list[tuple[TokenBatch, TokenStats]]:
        """Micro-batches with their statistics at the present weights, by passes of their own."""
        assert self.probe is not None
        pairs = []
        for micro in micros:
            stats = self.probe.scorer.measure(self.inputs_of(micro))
            pairs.append((self.batch_of(micro, stats.logp, stats.entropy), stats))
        return pairs

    def _plan_ahead(self, carrier: Carrier) -> None:
        """All micro-batches of the coming step are in TRL's buffer: plan them as one."""
        trainer, slices = self.trainer, self.trainer._buffered_inputs
        begun, each = trainer._step, trainer.current_gradient_accumulation_steps
        period = len(slices) * trainer.num_iterations
        if begun % period + each > period:  # an epoch's remainder has shifted the windows
            logger.warning("a step that mixes two rollouts is planned by its micro-batches")
            return
        micros = [slices[(begun + k) % len(slices)] for k in range(each)]
        carrier.plan_ahead(micros, self._pairs(micros))

    def hold_out_next(self) -> None:
        """The next step's micro-batches, which nothing has trained on yet, are measured around the
        coming one as well."""
        trainer, probe = self.trainer, self.probe
        if probe is None or not self.held_out or self.rollout is None:
            return
        each, slices = trainer.current_gradient_accumulation_steps, trainer._buffered_inputs
        done = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations)
        later = slices[done : done + each] if done else []
        if done >= len(slices) or any("old_per_token_logps" not in m for m in later):
            return
        pairs = [(self.inputs_of(m), self.batch_of(m, None, None)) for m in later]
        probe.hold_out(pairs, "next_minibatch")

