"""What a run is made of: task, method, model, optimizer, sampler and probe, from its settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from entropy_lab.errors import ConfigError, RunError, nearest
from entropy_lab.interventions import Method, make_method
from entropy_lab.probe import Probe
from entropy_lab.probe.scorer import Score, active_dropout
from entropy_lab.probe.world import ALONE, Alone
from entropy_lab.record.manifest import read_info, update_info
from entropy_lab.record.vocab import write_vocab
from entropy_lab.train.agreement import check_agreement
from entropy_lab.train.checkpoint import load_checkpoint, load_optimizer
from entropy_lab.train.config import Config
from entropy_lab.train.draws import check_problems, draw_prompts
from entropy_lab.train.gather import Rules, Scored, make_micros, score_responses
from entropy_lab.train.layout import Layout
from entropy_lab.train.model import load_model
from entropy_lab.train.notes import notes
from entropy_lab.train.parallel.sampling import sample_together
from entropy_lab.train.policy import Micro, make_score
from entropy_lab.train.progress import Progress
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.randomness import sampling_seed
from entropy_lab.train.rewards import Rewarder, make_rewarder
from entropy_lab.train.rollout import ENGINES, Responses, RolloutEngine
from entropy_lab.train.tasks import Place, Problem, Source, Task, make_task
from entropy_lab.train.token_texts import token_texts


@dataclass
class Parts:
    """What a run is made of, built once from its settings.

    model: what samples and measures; params: what the optimizer moves. drawn: how many problems
    each stream has given so far, part of the state of a run. world: the processes of the run.
    """

    config: Config
    task: Task
    method: Method
    model: nn.Module
    tokenizer: Any
    params: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    engine: RolloutEngine
    probe: Probe
    rewarder: Rewarder
    drawn: dict[str, int] = field(default_factory=dict)
    world: Alone = ALONE

    @cached_property
    def source(self) -> Source:
        """The task's problems, read when they are first needed; a replay needs none."""
        return self.task.source(partial(encode_prompt, self.tokenizer))

    def draw(self, prompts: int, name: str, number: int) -> list[Problem]:
        """The next problems of a stream: a function of seed, name, number and how many before.

        The stream is the first word of the name: problems that replace others of a rollout come
        from where its own came from.
        """
        stream = name.partition(" ")[0]
        first = self.drawn.get(stream, 0)
        self.drawn[stream] = first + prompts
        place = Place(self.config.run.seed, name, number, stream, first)
        return self.source.draw(prompts, place)

    def sample(self, prompts: int, name: str, number: int) -> Scored:
        """Responses to fresh problems with their rewards: a function of weights and seed."""
        config = self.config
        problems, ids, facts = draw_prompts(self, prompts, name, number)
        seed, most = sampling_seed(config.run.seed, name, number), config.rollout.max_tokens
        self.world.fill()
        self.world.at("sampling")
        ask = partial(
            self.engine.generate,
            self.model,
            ids,
            n=config.rollout.group_size,
            max_tokens=most,
            temperature=config.rollout.temperature,
            seed=seed,
        )
        responses = ask() if self.world.size == 1 else sample_together(self.world, ask, len(ids))
        grade = partial(
            score_responses,
            responses,
            problems,
            self.rewarder,
            self.tokenizer,
            max_tokens=most,
            seed=seed,
        )
        # By one rank: a reward of the user's may depend on all that it is asked at once.
        self.world.at("the rewards")
        scored = self.world.told(grade() if self.world.rank == 0 else None)
        assert scored is not None
        reward = scored.reward
        if config.rollout.truncated == "zero":
            # A penalty stays: being cut off must not pay more than being almost cut off.
            reward = torch.where(responses.truncated, reward.clamp(max=0.0), reward)
        return replace(scored, reward=reward, facts=facts)

    @property
    def rules(self) -> Rules:
        """How responses become micro-batches."""
        r, t = self.config.rollout, self.config.train
        correction = None
        if t.rollout_correction != "none":
            correction = (t.rollout_correction, t.rollout_correction_cap)
        return Rules(
            Layout(t.micro_batch, t.micro_tokens),
            groups=r.prompts * (r.max_draws if r.dynamic_sampling else 1),
            mask_truncated=r.truncated == "mask",
            correction=correction,
        )

    def micros(
        self, scored: Scored, rollout: int, minibatches: int, watched: bool = False
    ) -> list[list[Micro]]:
        """The responses as minibatches of micro-batches, with advantages and old_logp.

        watched: they are in no loss, so none is masked out of it and none is corrected. Raises
        RunError where the sampler's log-probabilities are needed and its engine gave none, and
        where they are not the trainer's.
        """
        rules = self.rules
        self.world.fill()
        if watched:
            rules = rules._replace(mask_truncated=False, correction=None)
        if rules.correction is not None and scored.responses.logp is None:
            raise RunError(
                f"train.rollout_correction needs the sampler's log-probabilities, which the engine "
                f'{self.config.rollout.engine!r} does not give: set it to "none"'
            )
        # A method that reads statistics, or dropout, wants a pass without gradients of its own.
        own = bool(self.method.needs) or bool(active_dropout(self.model)) or self.world.size > 1
        steps = make_micros(
            scored,
            self.probe.scorer,
            self.method,
            rules,
            rollout=rollout,
            seed=self.config.run.seed,
            step=self.probe.step,
            minibatches=minibatches,
            forward=None if own or watched else self.probe.meters.forward,
            world=self.world,
        )
        if scored.responses.logp is not None:
            check_agreement(scored.responses, old_logp_of(scored.responses, steps), self.engine)
        return steps


def build(
    config: Config,
    run_dir: Path,
    checkpoint: Path | None,
    progress: Progress,
    world: Alone = ALONE,
) -> tuple[Parts, dict[str, Any], dict[str, Tensor]]:
    """The parts of a run, with the state and tensors of `checkpoint` where there is one."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    task = make_task(config.task.name, **config.task.params)
    method = make_method(config.method.name, **config.method.params)
    engine = ENGINES[config.rollout.engine](config)
    rewarder = make_rewarder(config.reward, task)

    def warmup(done: int, total: int, loss: float) -> None:
        world.at("the making of the model")
        progress.warmup(done, total, loss)

    model, tokenizer = world.in_turn(lambda: load_model(config, warmup))
    for line in notes(config, model, [p for p in model.parameters() if p.requires_grad], world):
        progress.say(line)
    state, tensors = load_checkpoint(checkpoint, model) if checkpoint else ({}, {})
    tensors = on_device(tensors, model)
    scoring = partial(
        make_score,
        temperature=config.rollout.temperature,
        autocast=config.model.autocast,
        tiled=config.train.tiled_head,
    )
    model, learner, loss_score = world.prepare(model, scoring)
    # Measured as the loss forward runs, so that one serves as the other.
    score = scoring(model) if loss_score is None else scoring(model, share_prompts=False)
    params = [p for p in learner.parameters() if p.requires_grad]
    optimizer = make_optimizer(config, params)
    if checkpoint:
        load_optimizer(checkpoint, optimizer)
    world.attach(optimizer)
    probe = make_probe(
        config, run_dir, model, optimizer, score, state.get("step", 0), world, loss_score
    )
    parts = Parts(
        config, task, method, model, tokenizer, params, optimizer, engine, probe, rewarder
    )
    parts.world = world
    parts.drawn.update(state.get("drawn", {}))
    try:
        if world.rank == 0:
            write_vocab(run_dir, token_texts(tokenizer))
        read_data(parts, run_dir, state, progress)
        check_best_on(parts)
    except BaseException:
        probe.close("failed")
        raise
    return parts, state, tensors


def old_logp_of(responses: Responses, steps: list[list[Micro]]) -> Tensor:
    """old_logp (B, T) of all micro-batches, in the order and width of the responses."""
    micros = [m for part in steps for m in part]
    width = responses.token_id.shape[1]
    rows = torch.cat(
        [pad(m.batch.old_logp, (0, width - m.batch.old_logp.shape[1])) for m in micros]
    )
    uid = torch.cat([m.batch.uid for m in micros if m.batch.uid is not None])
    return rows[uid.argsort()]


def on_device(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's tensors, which are read into main memory, where the model is."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def check_best_on(parts: Parts) -> None:
    """Raise ConfigError for a train.best_on that is no benchmark of this run."""
    only = parts.config.train.best_on
    if only and only not in (names := parts.source.benchmarks(parts.config.eval.problems)):
        raise ConfigError(f"train.best_on = {only!r} is no benchmark; {nearest(only, names)}")


def read_data(parts: Parts, run_dir: Path, state: dict[str, Any], progress: Progress) -> None:
    """Read the files of a task that has some: said in a line, and kept in run.json as "data".

    Raises RunError where a run goes on that had other problems before, ConfigError as
    `check_problems` does.
    """
    facts = parts.source.facts
    if not facts:
        return
    before = (read_info(run_dir).get("data") or {}).get("fingerprint", facts["fingerprint"])
    if state and facts["fingerprint"] != before:
        raise RunError(
            "the training problems are not those that the run began with (fingerprint "
            f"{facts['fingerprint']}, then {before}): put the files of task.train back as they "
            "were, or start anew"
        )
    check_problems(parts.config, parts.source, parts.rewarder, parts.tokenizer)
    update_info(run_dir, data=dict(facts))
    progress.say(parts.source.summary)


def make_optimizer(config: Config, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    o = config.optimizer
    if o.name == "sgd":
        return torch.optim.SGD(params, lr=o.lr, momentum=o.beta1, weight_decay=o.weight_decay)
    return torch.optim.AdamW(
        params, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay
    )


def make_probe(
    config: Config,
    run_dir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    score: Score,
    step: int,
    world: Alone = ALONE,
    loss_score: Score | None = None,
) -> Probe:
    p = config.probe
    return Probe(
        model,
        optimizer,
        run_dir,
        score,
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
        strict=True,
        tell_cost=False,
        on_alarm=None,
        world=world,
        loss_score=loss_score,
        max_log_bytes=config.train.max_log_gb * 1e9,
    )
