"""What a run is made of: task, method, model, optimizer, sampler and probe, from its settings."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropy_lab.interventions import Method, make_method
from entropy_lab.probe import Probe
from entropy_lab.train.agreement import check_agreement
from entropy_lab.train.checkpoint import load_checkpoint
from entropy_lab.train.config import Config
from entropy_lab.train.gather import Scored, make_micros, score_responses
from entropy_lab.train.model import load_model
from entropy_lab.train.policy import Micro, make_score
from entropy_lab.train.progress import Progress
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.randomness import sampling_seed
from entropy_lab.train.rollout import ENGINES, RolloutEngine
from entropy_lab.train.tasks import Problem, Task, make_task


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

    def draw(self, prompts: int, name: str, number: int) -> list[Problem]:
        """Fresh problems: a function of the seed, the name and the number."""
        rng = random.Random(f"{self.config.run.seed} {name} problems {number}")
        return self.task.problems(prompts, rng)

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
        steps = make_micros(
            scored,
            self.probe.scorer,
            self.method,
            rollout=rollout,
            seed=self.config.run.seed,
            step=self.probe.step,
            size=self.config.train.micro_batch,
            minibatches=minibatches,
        )
        old_logp = torch.cat([m.batch.old_logp for part in steps for m in part])
        check_agreement(scored.responses, old_logp, self.engine)
        return steps


def build(
    config: Config, run_dir: Path, checkpoint: Path | None, progress: Progress
) -> tuple[Parts, dict[str, Any], dict[str, Tensor]]:
    """The parts of a run, with the state and tensors of `checkpoint` where there is one."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    task = make_task(config.task.name, **config.task.params)
    method = make_method(config.method.name, **config.method.params)
    engine = ENGINES[config.rollout.engine](config)
    model, tokenizer = load_model(config, progress.warmup)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(config, params)
    state, tensors = load_checkpoint(checkpoint, model, optimizer) if checkpoint else ({}, {})
    probe = make_probe(config, run_dir, model, optimizer, state.get("step", 0))
    parts = Parts(config, task, method, model, tokenizer, params, optimizer, engine, probe)
    return parts, state, tensors


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
