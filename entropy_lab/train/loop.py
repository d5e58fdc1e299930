"""The training loop of RLVR, read from top to bottom: roll out, reward, update, measure, log."""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropy_lab.errors import RunError
from entropy_lab.interventions import plan_step
from entropy_lab.interventions.base import State
from entropy_lab.loss import TokenShare, policy_loss
from entropy_lab.probe.alarm import CollapseAlarm
from entropy_lab.probe.provisional import Provisional, take_influence
from entropy_lab.probe.world import ALONE, Alone, measured_by_all
from entropy_lab.train.best import checkpoint_score
from entropy_lab.train.checkpoint import save_checkpoint
from entropy_lab.train.config import Config
from entropy_lab.train.draws import draw_rollout, log_samples, warnings_of
from entropy_lab.train.evaluate import evaluate_if_due
from entropy_lab.train.interrupt import stop_request
from entropy_lab.train.packing import pack, unpack
from entropy_lab.train.parts import Parts, build
from entropy_lab.train.policy import Micro
from entropy_lab.train.progress import Progress
from entropy_lab.train.replay_point import save_replay_point
from entropy_lab.train.schedule import set_lr
from entropy_lab.train.trackers import open_tracker, untold
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats


def train(
    config: Config,
    run_dir: Path,
    checkpoint: Path | None,
    progress: Progress,
    world: Alone = ALONE,
) -> bool:
    """Train as `config` says into `run_dir`, an existing run; True when it ran to its end.

    checkpoint: continue from there; the directory has been rewound to it. False means that the
    user asked to stop and everything is saved. A function of config, seeds and thread count:
    equal ones give equal weights and rows on CPU, interrupted or not. world: the processes that
    train together, each of which calls this.
    """
    parts, state, tensors = build(config, run_dir, checkpoint, progress, world)
    probe, minibatches = parts.probe, config.train.minibatches
    probe.log.alarm = CollapseAlarm.from_dict(state.get("alarm", {}))
    memory: State = state.get("method", parts.method.initial_state())
    with (
        closing(parts.engine),
        parts.rewarder,
        probe,
        stop_request(world.on_stop) as stop,
        open_tracker(config if world.rank == 0 else untold(config), run_dir, probe.step) as tracker,
    ):
        tensors = fix_probe_set(parts, tensors)
        time_eval = 0.0 if state else evaluate_if_due(parts, run_dir, progress)
        for rollout in range(state.get("rollout", 0), config.train.rollouts):
            started = time.perf_counter()
            scored = draw_rollout(parts, rollout)
            time_rollout = time.perf_counter() - started
            progress.say_once(warnings_of(scored, rollout))
            steps = parts.micros(scored, rollout, minibatches)
            log_samples(parts, scored, steps, rollout)
            if is_every(rollout, config.train.replay_every):
                save_replay_point(run_dir, parts, steps, memory, rollout)
            memory = begin_rollout(parts, steps, memory)
            for age, micros in enumerate(steps):
                begun = time.perf_counter()
                later = steps[age + 1] if age + 1 < minibatches else []
                memory = update(parts, micros, later, rollout, memory)
                now = time.perf_counter()
                time_eval += evaluate_if_due(parts, run_dir, progress)
                metrics = probe.commit(
                    **response_means(micros),
                    **(scored.facts or {}),
                    time_rollout=time_rollout / minibatches,
                    time_update=now - begun,
                    time_step=now - started,
                    time_eval=time_eval,
                )
                started, time_eval = now, 0.0
                tracker.step(metrics)
                if probe.writer.full:
                    progress.say_once({"full": full_log(config, probe.step - 1)})
                progress.step(metrics, probe.step, config.train.rollouts * minibatches)
            last, stopped = rollout + 1 == config.train.rollouts, world.asked(stop)
            if last or stopped or is_every(rollout + 1, config.train.checkpoint_every):
                state = {"rollout": rollout + 1, "drawn": parts.drawn}
                state |= {"alarm": probe.log.alarm.to_dict(), "method": memory}
                save(parts, run_dir, state, tensors)
            if stopped and not last:
                probe.close("interrupted")
                return False
    return True


def save(parts: Parts, run_dir: Path, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """A checkpoint of the present weights, once all rows up to here are on disk.

    With adapters it is no model folder: transformers would leave their layers at random.
    """
    parts.probe.flush()
    parts.world.fill()
    parts.world.at("a checkpoint")
    step = parts.probe.step
    save_checkpoint(
        run_dir,
        step,
        parts.model,
        parts.optimizer,
        {"step": step, **state},
        tensors,
        parts.config.train.keep_checkpoints,
        tokenizer=None if parts.config.model.lora_rank else parts.tokenizer,
        score=checkpoint_score(parts.config, run_dir, step),
        world=parts.world,
    )


def full_log(config: Config, step: int) -> str:
    return (
        f"step {step}: the log has met train.max_log_gb = {config.train.max_log_gb:g}; from here "
        "on token rows and texts are left out, everything else is logged"
    )


def is_every(count: int, every: int) -> bool:
    """True at each multiple of `every`; never where it is 0."""
    return every > 0 and count % every == 0


def begin_rollout(parts: Parts, steps: list[list[Micro]], memory: State) -> State:
    """What the method remembers for the steps of a rollout, whose minibatches are all here."""
    micros = [m for part in steps for m in part]
    if not any(bool(m.batch.mask.any()) for m in micros):
        return memory
    return parts.method.begin_rollout(*gathered(micros, known_stats(parts, micros)), memory)


def update(
    parts: Parts, micros: list[Micro], held_out: list[Micro], rollout: int, memory: State
) -> State:
    """One optimizer step on a minibatch, measured: plan, loss, backward, clip, step.

    memory: the method's, for this step; returns the one after it.
    """
    config, probe, method, world = parts.config, parts.probe, parts.method, parts.world
    world.at("the update")
    set_lr(parts.optimizer, config, probe.step)
    stats, batches = known_stats(parts, micros), [m.batch for m in micros]
    forwards = [m.forward for m in micros]
    empty = not any(bool(batch.mask.any()) for batch in batches)
    if "influence_marginal" in method.needs and not empty:
        forwards, batches, memory = look_ahead(parts, micros, memory)
    plans = no_plans(batches) if empty else plan_step(method, batches, stats, memory)
    world.empty()
    for micro, batch, known, (plan, share) in world.deal(
        list(zip(micros, batches, forwards, plans, strict=True))
    ):
        forward = probe.record(micro.inputs, batch, known)
        out = policy_loss(forward, batch, plan, share)
        probe.annotate(weight=plan.weight, flags=out.flags)
        out.loss.backward()
    world.sum_gradients(parts.params, len(micros), lambda: probe.meters.forward(micros[0].inputs))
    grad_norm, kappa = clip(parts.params, config.optimizer.clip_norm)
    if not math.isfinite(grad_norm):
        raise RunError(
            f"training diverged: the gradient norm of step {probe.step} is {grad_norm}; lower "
            f"optimizer.lr (now {config.optimizer.lr}) and start anew"
        )
    probe.note(rollout=rollout, grad_norm=grad_norm, kappa=kappa)
    probe.note(**method_scalars(plans, memory))
    if config.probe.held_out and held_out:
        probe.hold_out([m.pair() for m in held_out], "next_minibatch")
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    return memory if empty else method.end_step(*gathered(micros, stats), memory)


def no_plans(batches: list[TokenBatch]) -> list[tuple[TokenPlan, TokenShare]]:
    """Of a step whose responses are all masked out of the loss: its gradient is zero, and the
    optimizer's momentum and decay alone move the weights."""
    zeros = [torch.zeros_like(batch.old_logp) for batch in batches]
    return [(TokenPlan(), TokenShare(policy=z, entropy=z)) for z in zeros]


def look_ahead(
    parts: Parts, micros: list[Micro], memory: State
) -> tuple[list[TokenStats | None], list[TokenBatch], State]:
    """The loss forwards, the batches with influence_marginal, and the method's memory with it.

    All graphs of the step are kept until its backward: the price of knowing it beforehand.
    """
    meters, clip_norm = parts.probe.meters, parts.config.optimizer.clip_norm
    forwards = [meters.forward(m.inputs) for m in micros]
    inputs, batches = [m.inputs for m in micros], [m.batch for m in micros]
    ahead = Provisional.begin(meters.deep, parts.optimizer, clip_norm, inputs, batches, forwards)
    batches, memory = take_influence(parts.method, ahead, memory)
    return list(forwards), batches, memory


def known_stats(parts: Parts, micros: list[Micro]) -> list[TokenStats] | None:
    """The no-grad pass at the present weights that a method reads; the probe shares it."""
    if not parts.method.needs - {"influence_marginal"}:
        return None
    parts.world.fill()
    return measured_by_all(parts.probe.scorer, [m.inputs for m in micros], parts.world)


def gathered(
    micros: list[Micro], stats: list[TokenStats] | None
) -> tuple[TokenBatch, TokenStats | None]:
    """Micro-batches and their statistics, each as one."""
    whole = TokenBatch.cat([m.batch for m in micros])
    return whole, None if stats is None else TokenStats.cat(stats)


def fix_probe_set(parts: Parts, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hand the fixed probe set to the probe; without saved `tensors`, sample it now."""
    config = parts.config
    if not (config.probe.enabled and config.probe.fixed_responses):
        return {}
    fresh = not tensors
    if fresh:
        groups = -(-config.probe.fixed_responses // config.rollout.group_size)
        [micros] = parts.micros(parts.sample(groups, "fixed", 0), -1, 1, watched=True)
        tensors = pack(micros, "fixed")
    micros = unpack(tensors, "fixed", config.train.micro_batch)
    parts.probe.fix([m.pair() for m in micros], save=fresh)
    return tensors


def clip(params: list[nn.Parameter], max_norm: float) -> tuple[float, float]:
    """Clip the gradient to `max_norm` (0: off); returns its norm before and kappa, the factor."""
    limit = max_norm or float("inf")
    total: Any = nn.utils.clip_grad_norm_(params, limit)
    norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
    return norm, min(1.0, limit / (norm + 1e-6))


def method_scalars(plans: list[Any], memory: State) -> dict[str, float]:
    """`method_*`: the memory at the step, and its plans' scalars averaged over micro-batches."""
    scalars = [plan.scalars for plan, _ in plans if plan.scalars]
    keys = scalars[0] if scalars else {}
    means = {k: sum(s[k] for s in scalars) / len(scalars) for k in keys}
    return {f"method_{k}": value for k, value in {**memory, **means}.items()}


def response_means(micros: list[Micro]) -> dict[str, float]:
    """Means over the responses of one minibatch, those that are masked out of the loss too."""
    whole, _ = gathered(micros, None)
    assert whole.reward is not None and whole.truncated is not None
    length = torch.cat([m.sampled().sum(1) for m in micros])
    means = {
        "reward": float(whole.reward.double().mean()),
        "response_length": float(length.double().mean()),
        "truncated_share": float(whole.truncated.double().mean()),
    }
    return means | sampler_mismatch(whole)


def sampler_mismatch(batch: TokenBatch) -> dict[str, float]:
    """How far the sampler was from the trainer at the same weights, over tokens in the loss.

    With d = old_logp - rollout_logp: rollout_logp_diff mean |d|, rollout_logp_diff_max, rollout_kl
    the mean of exp(d) - 1 - d (k3) and rollout_kl_k1 that of -d, estimates in nats of
    KL(sampler | trainer); rollout_weight_mean and rollout_weight_min, max of the correction, where
    there is one. Empty where the sampler reported nothing.
    """
    if batch.rollout_logp is None or not bool(batch.mask.any()):
        return {}
    d = (batch.old_logp.double() - batch.rollout_logp.double())[batch.mask]
    found = {
        "rollout_logp_diff": d.abs().mean(),
        "rollout_logp_diff_max": d.abs().max(),
        "rollout_kl": (d.expm1() - d).mean(),
        "rollout_kl_k1": -d.mean(),
    }
    if batch.rollout_weight is not None:
        weight = batch.rollout_weight[batch.mask].double()
        found |= {"rollout_weight_mean": weight.mean(), "rollout_weight_min": weight.min(),
                  "rollout_weight_max": weight.max()}  # fmt: skip
    return {name: float(value) for name, value in found.items()}
