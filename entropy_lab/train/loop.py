"""The training loop of RLVR, read from top to bottom: roll out, reward, update, measure, log."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropy_lab.errors import RunError
from entropy_lab.interventions import Method, make_method, plan_step
from entropy_lab.loss import policy_loss
from entropy_lab.probe import Probe
from entropy_lab.train.alarm import CollapseAlarm
from entropy_lab.train.checkpoint import load_checkpoint, save_checkpoint
from entropy_lab.train.config import Config
from entropy_lab.train.evaluate import evaluate_if_due
from entropy_lab.train.gather import (
    Scored,
    make_micros,
    pack,
    sample_rows,
    score_responses,
    unpack,
)
from entropy_lab.train.interrupt import stop_request
from entropy_lab.train.model import load_model
from entropy_lab.train.policy import Micro, make_score
from entropy_lab.train.progress import Progress
from entropy_lab.train.randomness import sampling_seed
from entropy_lab.train.rollout import ENGINES, RolloutEngine
from entropy_lab.train.tasks import Task, make_task
from entropy_lab.types import TokenBatch


@dataclass
class Parts:
    """What a run is made of, built once from its settings."""

    config: Config
    task: Task
    method: Method
    model: nn.Module
    tokenizer: Any
    params: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    engine: RolloutEngine
    probe: Probe

    def sample(self, prompts: int, name: str, number: int) -> Scored:
        """Responses to fresh problems with their rewards: a function of weights and seed."""
        config = self.config
        rng = random.Random(f"{config.run.seed} {name} problems {number}")
        problems = self.task.problems(prompts, rng)
        responses = self.engine.generate(
            self.model,
            [self.tokenizer.encode(p.prompt) for p in problems],
            n=config.rollout.group_size,
            max_tokens=config.rollout.max_tokens,
            temperature=config.rollout.temperature,
            seed=sampling_seed(config.run.seed, name, number),
        )
        return score_responses(responses, problems, self.task, self.tokenizer)

    def micros(self, scored: Scored, rollout: int, minibatches: int) -> list[list[Micro]]:
        """The responses as minibatches of micro-batches, with advantages and old_logp."""
        return make_micros(
            scored,
            self.probe.scorer,
            self.method,
            rollout=rollout,
            seed=self.config.run.seed,
            step=self.probe.step,
            size=self.config.train.micro_batch,
            minibatches=minibatches,
        )


def train(config: Config, run_dir: Path, checkpoint: Path | None, progress: Progress) -> bool:
    """Train as `config` says into `run_dir`, an existing run; True when it ran to its end.

    checkpoint: continue from there; the directory has been rewound to it. False means that the
    user asked to stop and everything is saved. A function of config, seeds and thread count:
    equal ones give equal weights and rows on CPU, interrupted or not.
    """
    parts, state, tensors = build(config, run_dir, checkpoint, progress)
    probe, minibatches = parts.probe, config.train.minibatches
    alarm = CollapseAlarm.from_dict(state.get("alarm", {}))
    with probe, stop_request() as stop:
        tensors = fix_probe_set(parts, tensors)
        time_eval = 0.0 if state else evaluate_if_due(parts, run_dir)
        for rollout in range(state.get("rollout", 0), config.train.rollouts):
            started = time.perf_counter()
            scored = parts.sample(config.rollout.prompts, "rollout", rollout)
            time_rollout = time.perf_counter() - started
            steps = parts.micros(scored, rollout, minibatches)
            probe.samples(sample_rows(scored, steps, probe.inclusion_prob, rollout, probe.step))
            for age, micros in enumerate(steps):
                begun = time.perf_counter()
                later = steps[age + 1] if age + 1 < minibatches else []
                update(parts, micros, later, rollout)
                now = time.perf_counter()
                time_eval += evaluate_if_due(parts, run_dir)
                metrics = probe.commit(
                    **response_means(micros),
                    **alarm.update(probe.last_row),
                    time_rollout=time_rollout / minibatches,
                    time_update=now - begun,
                    time_step=now - started,
                    time_eval=time_eval,
                )
                started, time_eval = now, 0.0
                progress.step(metrics, probe.step, config.train.rollouts * minibatches)
            last = rollout + 1 == config.train.rollouts
            every = config.train.checkpoint_every
            if last or stop or (every and (rollout + 1) % every == 0):
                probe.flush()
                state = {"step": probe.step, "rollout": rollout + 1, "alarm": alarm.to_dict()}
                keep = config.train.keep_checkpoints
                save_checkpoint(
                    run_dir, probe.step, parts.model, parts.optimizer, state, tensors, keep
                )
            if stop and not last:
                probe.close("interrupted")
                return False
    return True


def update(parts: Parts, micros: list[Micro], held_out: list[Micro], rollout: int) -> None:
    """One optimizer step on a minibatch, measured: plan, loss, backward, clip, step."""
    config, probe, method = parts.config, parts.probe, parts.method
    batches = [m.batch for m in micros]
    # The no-grad pass that a method's batch statistics come from; the probe shares it.
    stats = [probe.scorer.measure(m.inputs) for m in micros] if method.needs else None
    plans = plan_step(method, batches, stats)
    for micro, (plan, share) in zip(micros, plans, strict=True):
        forward = probe.record(micro.inputs, micro.batch)
        out = policy_loss(forward, micro.batch, plan, share)
        probe.annotate(weight=plan.weight, flags=out.flags)
        out.loss.backward()
    grad_norm, kappa = clip(parts.params, config.optimizer.clip_norm)
    if not math.isfinite(grad_norm):
        raise RunError(
            f"training diverged: the gradient norm of step {probe.step} is {grad_norm}; lower "
            f"optimizer.lr (now {config.optimizer.lr}) and start anew"
        )
    set_lr(parts.optimizer, config, probe.step)
    probe.note(rollout=rollout, grad_norm=grad_norm, kappa=kappa, **method_scalars(plans))
    if config.probe.held_out and held_out:
        probe.hold_out([m.pair() for m in held_out], "next_minibatch")
    parts.optimizer.step()
    parts.optimizer.zero_grad()


def build(
    config: Config, run_dir: Path, checkpoint: Path | None, progress: Progress
) -> tuple[Parts, dict[str, Any], dict[str, Tensor]]:
    """The parts of a run, with the state and tensors of `checkpoint` where there is one."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    task = make_task(config.task.name, **config.task.params)
    method = make_method(config.method.name, **config.method.params)
    model, tokenizer = load_model(config, progress.warmup)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(config, params)
    state, tensors = load_checkpoint(checkpoint, model, optimizer) if checkpoint else ({}, {})
    probe = make_probe(config, run_dir, model, optimizer, state.get("step", 0))
    engine = ENGINES[config.rollout.engine]()
    parts = Parts(config, task, method, model, tokenizer, params, optimizer, engine, probe)
    return parts, state, tensors


def fix_probe_set(parts: Parts, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hand the fixed probe set to the probe; without saved `tensors`, sample it now."""
    config = parts.config
    if not (config.probe.enabled and config.probe.fixed_responses):
        return {}
    fresh = not tensors
    if fresh:
        groups = -(-config.probe.fixed_responses // config.rollout.group_size)
        tensors = pack(parts.micros(parts.sample(groups, "fixed", 0), -1, 1)[0])
    parts.probe.fix(unpack(tensors, config.train.micro_batch), save=fresh)
    return tensors


def make_optimizer(config: Config, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    o = config.optimizer
    if o.name == "sgd":
        return torch.optim.SGD(params, lr=o.lr, momentum=o.beta1, weight_decay=o.weight_decay)
    return torch.optim.AdamW(
        params, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay
    )


def make_probe(
    config: Config, run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> Probe:
    p = config.probe
    return Probe(
        model,
        optimizer,
        run_dir,
        make_score(model, config.rollout.temperature, config.model.autocast),
        every=p.every if p.enabled else 0,
        fraction=p.fraction,
        floor_every=p.floor_every,
        deep_every=p.deep_every,
        jvp=p.jvp,
        entropy_of=p.entropy_of,
        snapshots="cpu" if p.snapshots == "cpu" else None,
        dtype=p.dtype,
        policy=p.policy,
        profile=p.profile,
        seed=config.run.seed,
        temperature=config.rollout.temperature,
        start_step=step,
        write_samples=False,
    )


def clip(params: list[nn.Parameter], max_norm: float) -> tuple[float, float]:
    """Clip the gradient to `max_norm` (0: off); returns its norm before and kappa, the factor."""
    limit = max_norm or float("inf")
    norm = float(nn.utils.clip_grad_norm_(params, limit))
    return norm, min(1.0, limit / (norm + 1e-6))


def set_lr(optimizer: torch.optim.Optimizer, config: Config, step: int) -> None:
    """Linear warm-up to the configured rate, which then stays."""
    o = config.optimizer
    factor = min(1.0, (step + 1) / o.warmup_steps) if o.warmup_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = o.lr * factor


def method_scalars(plans: list[Any]) -> dict[str, float]:
    """`method_*`: the scalars of the step's plans, averaged over micro-batches."""
    scalars = [plan.scalars for plan, _ in plans if plan.scalars]
    keys = scalars[0] if scalars else {}
    return {f"method_{k}": sum(s[k] for s in scalars) / len(scalars) for k in keys}


def response_means(micros: list[Micro]) -> dict[str, float]:
    """Means over the responses of one minibatch."""
    whole = TokenBatch.cat([m.batch for m in micros])
    assert whole.reward is not None and whole.truncated is not None
    return {
        "reward": float(whole.reward.double().mean()),
        "response_length": float(whole.mask.sum(1).double().mean()),
        "truncated_share": float(whole.truncated.double().mean()),
    }
