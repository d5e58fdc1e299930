"""What a run is made of: task, method, model, optimizer, sampler and probe, from its settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropy_lab.errors import RunError
from entropy_lab.interventions import Method, make_method
from entropy_lab.probe import Probe
from entropy_lab.record.manifest import read_info, update_info
from entropy_lab.train.checkpoint import load_checkpoint
from entropy_lab.train.config import Config
from entropy_lab.train.gather import Scored, make_micros, score_responses
from entropy_lab.train.model import load_model
from entropy_lab.train.policy import Micro, make_score
from entropy_lab.train.progress import Progress
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.randomness import sampling_seed
from entropy_lab.train.rollout import ENGINES, RolloutEngine
from entropy_lab.train.tasks import Place, Problem, Source, Task, make_task


@dataclass
class Parts:
    """What a run is made of, built once from its settings.

    drawn: how many problems each stream has given so far, part of the state of a run.
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
    drawn: dict[str, int] = field(default_factory=dict)

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
        problems = self.draw(prompts, name, number)
        responses = self.engine.generate(
            self.model,
            [encode_prompt(self.tokenizer, p.prompt) for p in problems],
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
    parts.drawn.update(state.get("drawn", {}))
    read_data(parts, run_dir, state, progress)
    return parts, state, tensors


def read_data(parts: Parts, run_dir: Path, state: dict[str, Any], progress: Progress) -> None:
    """Read the files of a task that has some: said in a line, and kept in run.json as "data".

    Raises RunError where a run goes on that had other problems before.
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
    update_info(run_dir, data=dict(facts))
    progress.note(parts.source.summary)


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
