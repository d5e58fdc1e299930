"""What `train --dry-run` says: the settings, and what a run with them will read, need and write."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from entropy_lab.train.config import Config
from entropy_lab.train.cost import announced
from entropy_lab.train.disk import disk_lines, size
from entropy_lab.train.draws import check_problems
from entropy_lab.train.memory import ALL, Shape, memory_parts, micro_size, peak, shape_of
from entropy_lab.train.model import new_model
from entropy_lab.train.pretrained import outline
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.rewards import make_rewarder
from entropy_lab.train.schedule import scheduled_steps
from entropy_lab.train.tasks import Place, Task, make_task, worked_task
from entropy_lab.train.tokenizer import character_tokenizer
from entropy_lab.train.trainable import choose_trainable

_DRAWN = 256  # problems whose prompts are measured


def describe(config: Config, out: Path) -> str:
    """The resolved settings as TOML, then comments on the run that they would make in `out`.

    Reads the model's configuration and tokenizer and the task's problems, never weights, and
    writes nothing. Raises ConfigError for what a run would refuse at its start.
    """
    task = make_task(config.task.name, **config.task.params)
    rewarder = make_rewarder(config.reward, task)
    model, tokenizer = _outline(config, task)
    source = task.source(partial(encode_prompt, tokenizer))
    check_problems(config, source, rewarder, tokenizer)
    problems = source.draw(_DRAWN, Place(config.run.seed, "dry run", 0, "dry run", 0))
    lengths = sorted(len(encode_prompt(tokenizer, p.prompt)) for p in problems)
    said = [
        f"would train {config.method.name} into {out}; nothing was written",
        source.summary or f"task: {config.task.name}, made here",
        *_model(config, model, lengths),
        *_batches(config, lengths[-1]),
        *_evaluations(config),
        *_memory(config, model, lengths[-1]),
        *disk_lines(config, model),
        announced(config) or "probe: off",
    ]
    return "\n".join([config.to_toml(), *(f"# {line}" for line in said)])


def _outline(config: Config, task: Task) -> tuple[Any, Any]:
    """(model on the meta device, which holds no numbers, tokenizer)."""
    if config.model.path:
        model, tokenizer = outline(config.model.path, config.model)
    else:
        tokenizer = character_tokenizer(worked_task(task).alphabet)
        with torch.device("meta"):
            model = new_model(config, tokenizer)
    choose_trainable(model, config.model)
    return model, tokenizer


def _model(config: Config, model: Any, lengths: list[int]) -> list[str]:
    shape = shape_of(model)
    where = config.model.path or "made here, kept in the cache"
    middle = statistics.median_low(lengths)
    lines = [
        f"model: {type(model).__name__}, {shape.layers} layers of {shape.hidden}, vocabulary "
        f"{shape.vocab:,}, {shape.parameters / 1e6:,.1f} M parameters{_trained(shape)}; {where}",
        f"prompts: {lengths[0]} to {lengths[-1]} tokens, median {middle} ({len(lengths)} drawn); "
        f"responses: up to {config.rollout.max_tokens}",
    ]
    limit = config.rollout.max_prompt_tokens
    if limit and lengths[-1] > limit:
        over = sum(n > limit for n in lengths)
        lines.append(
            f"warning: {over} of {len(lengths)} prompts are longer than "
            f"rollout.max_prompt_tokens = {limit}"
        )
    longest = min(lengths[-1], limit or lengths[-1]) + config.rollout.max_tokens
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions and longest > positions:
        lines.append(f"warning: {longest} tokens are more than the model's {positions} positions")
    return lines


def _trained(shape: Shape) -> str:
    """How many parameters are trained, where some are not."""
    trained = shape.parameters - shape.frozen + shape.adapters
    return f", {trained / 1e6:,.3g} M trained" if shape.frozen else ""


def _batches(config: Config, prompt_tokens: int) -> list[str]:
    """The arithmetic from prompts to optimizer steps."""
    r, t, o = config.rollout, config.train, config.optimizer
    responses, steps = r.prompts * r.group_size, t.rollouts * t.minibatches
    per_minibatch = responses // t.minibatches
    rows, _ = micro_size(config, prompt_tokens)
    falling = "" if o.schedule == "constant" else f", {o.schedule} over {scheduled_steps(config)}"
    most = responses * r.max_draws
    draws = [f"dynamic sampling draws up to {most:,} responses for each rollout"]
    return [
        f"{t.rollouts} rollouts of {responses} responses, {t.minibatches} optimizer steps each: "
        f"{steps} steps",
        f"a rollout: {r.prompts} prompts x {r.group_size}; a step: {per_minibatch} responses in "
        f"{-(-per_minibatch // rows)} micro-batches of up to {rows}",
        *(draws if r.dynamic_sampling else []),
        f"at most {responses * r.max_tokens * t.rollouts:,} training tokens",
        f"learning rate {o.lr:g}, {o.warmup_steps} steps of warm-up{falling or ', then constant'}",
    ]


def _evaluations(config: Config) -> list[str]:
    """How often a run is evaluated, and on what; nothing without evaluation."""
    e, rollouts = config.eval, config.train.rollouts
    if not e.every:
        return []
    times = 1 + -(-rollouts // e.every)  # before the first rollout; the last one always counts
    problems = f"each of {e.problems} problems"
    if "validation" in config.task.params:
        many = f"up to {e.problems} problems" if e.problems else "every problem"
        problems = f"{many} of each file of task.validation"
    return [f"{times} evaluations: {e.samples} responses to {problems}"]


def _memory(config: Config, model: Any, prompt_tokens: int) -> list[str]:
    """A table of the estimate, and the device it has to fit in where there is one."""
    parts = memory_parts(config, shape_of(model), prompt_tokens)
    phase, most = peak(parts)
    lines = ["memory, estimated:"]
    for part in parts:
        when = "always" if part.phases == ALL else ", ".join(sorted(part.phases))
        lines.append(f"  {part.what:<32}{size(part.bytes):>10}  {when}")
    device = "no CUDA device here to compare with"
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0)
        device = f"{size(there.total_memory)} on {there.name}"
    lines.append(f"  {'most at one time':<32}{size(most):>10}  in the {phase}; {device}")
    if config.rollout.engine != "hf":
        lines.append(f"  beside the share of the device that {config.rollout.engine} takes")
    return lines
