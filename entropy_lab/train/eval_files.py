"""Evaluation of a policy on benchmark files: every response kept, and continued after a stop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from entropy_lab.errors import ConfigError
from entropy_lab.record import run_lock, write_evals
from entropy_lab.record.evals import read_answers, write_answers
from entropy_lab.record.parts import make_folder, write_file
from entropy_lab.train.checks import check_samples
from entropy_lab.train.config import Config, override, reward_config
from entropy_lab.train.eval_target import Target, find_target
from entropy_lab.train.evaluate import chosen_k
from entropy_lab.train.exam import Examinee, Sampling, ask, examinee, portions, summary
from entropy_lab.train.messages import explain
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.rewards import RewardConfig, make_rewarder
from entropy_lab.train.rollout import ENGINES
from entropy_lab.train.tasks import Data, Encode, Problem, Task, make_task

# Told(benchmark, responses there are, responses there will be)
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """What the user asks for; None is what the run's own [eval] says, or else its default.

    benchmarks: data files; none: what the run itself is evaluated on. problems: at most that many
    of each (0: all). ks: those of pass@k. batch: responses drawn at a time.
    """

    benchmarks: tuple[str, ...] = ()
    ks: tuple[int, ...] = ()
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    batch: int | None = None
    problems: int | None = None
    greedy: bool = False
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """rows: those of OUT/evals.parquet that were asked for; out: the folder."""

    rows: list[dict[str, Any]]
    out: Path


def evaluate_files(
    path: Path, asked: Asked, out: Path | None = None, told: Told | None = None
) -> Evaluated:
    """Evaluate the policy at `path`; responses go to OUT/answers, numbers to OUT/evals.parquet.

    What an earlier call with the same weights, problems and settings has answered is read, not
    asked again. Raises ConfigError for settings that do not fit, RunError for what cannot be read
    or written.
    """
    target = find_target(path)
    how, ks = _sampling(asked, target.config)
    task, reward = _task(asked, target)
    target = replace(target, config=replace(target.config, reward=reward))
    model, tokenizer = target.load()
    benchmarks = _benchmarks(asked, task, partial(encode_prompt, tokenizer), target.config)
    engine = ENGINES[target.config.rollout.engine](target.config)
    rewarder = make_rewarder(target.config.reward, task)
    who = examinee(target.config, model, tokenizer, engine, rewarder)
    who = replace(who, batch=asked.batch or who.batch)
    rewarder.check(p for problems in benchmarks.values() for p in problems)
    folder = out or target.out
    make_folder(folder)
    rows = []
    with run_lock(folder), closing(engine), who.rewarder:
        for name, problems in benchmarks.items():
            facts = _facts(name, problems, how, who, task, target)
            answers = _answers(folder, facts, who, problems, how, target.step, told)
            rows += summary(name, target.step, answers, how, ks)
            write_evals(folder, rows)
    return Evaluated(rows, folder)


def _answers(
    folder: Path,
    facts: Mapping[str, Any],
    who: Examinee,
    problems: list[Problem],
    how: Sampling,
    step: int,
    told: Told | None,
) -> list[dict[str, Any]]:
    """The rows of all responses to a benchmark; those that are missing are asked for."""
    text = json.dumps(facts, indent=1)
    key = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    place = folder / "answers" / f"{facts['benchmark']}-{key}"
    make_folder(place)
    # Readers of the whole folder, such as pandas, pass over a name with an underscore.
    write_file(place / "_settings.json", text.encode())
    known, rows = read_answers(place), []
    for first, last in portions(problems, how.samples, who.batch):
        if (first, last) not in known:
            found = ask(who, problems, first, last, how, step)
            write_answers(place, first, last, found)
            known[first, last] = found
        rows += known[first, last]
        if told is not None:
            told(str(facts["benchmark"]), len(rows), len(problems) * how.samples)
    return rows


def _facts(
    name: str,
    problems: list[Problem],
    how: Sampling,
    who: Examinee,
    task: Task,
    target: Target,
) -> dict[str, Any]:
    """All that the responses depend on: equal facts, equal responses."""
    ids = hashlib.blake2b(repr([p.prompt_id for p in problems]).encode(), digest_size=8)
    return {
        "benchmark": name,
        "problems": len(problems),
        "problem_ids": ids.hexdigest(),
        "step": target.step,
        "weights": target.identity,
        "batch": who.batch,
        "engine": target.config.rollout.engine,
        "task": task.name,
        "reward": asdict(target.config.reward),
        **asdict(how),
    }


def _sampling(asked: Asked, config: Config) -> tuple[Sampling, list[int]]:
    """How responses are drawn, and the k of pass@k; what is not asked for is the run's [eval]."""
    e = config.eval
    if asked.greedy and (
        asked.temperature or (asked.samples or 1) > 1 or max(asked.ks, default=1) > 1
    ):
        raise ConfigError(
            "--greedy takes the likeliest response, of which there is one: leave out "
            "--temperature, --samples and any k above 1"
        )
    given = {
        "samples": 1 if asked.greedy else asked.samples or max(asked.ks, default=None),
        "temperature": 0.0 if asked.greedy else asked.temperature,
        "top_p": asked.top_p,
        "max_tokens": asked.max_tokens,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if "samples" in given:
        given |= {"k": list(asked.ks), "max_k": 0}
    elif not e.every:
        given["samples"] = 1  # the run is not evaluated, so it says nothing
    try:
        e = replace(e, **given)
    except ValidationError as error:
        raise ConfigError(f"evaluation: {explain(error)}") from None
    check_samples(e)
    max_tokens = e.max_tokens or config.rollout.max_tokens
    seed = config.run.seed if asked.seed is None else asked.seed
    return Sampling(e.samples, e.temperature, e.top_p, max_tokens, seed), chosen_k(e)


def _task(asked: Asked, target: Target) -> tuple[Task, RewardConfig]:
    """The task whose problems are asked, with benchmark files "data", and what grades them."""
    settings = {name: target.config.to_dict()[name] for name in ("task", "reward")}
    if asked.benchmarks:
        if settings["task"]["name"] != Data.name:
            settings["task"] = {"name": Data.name}
        files = list(asked.benchmarks)
        settings["task"] |= {"train": files, "validation": files, "weights": []}
        settings["task"] |= {"max_prompt_tokens": 0}
    elif not target.is_run:
        raise ConfigError("a model folder has no problems of its own: give --bench FILE")
    for text in asked.overrides:
        if not text.strip().startswith(("task.", "reward.")):
            raise ConfigError(
                f"--set {text}: an evaluation takes task.KEY=VALUE and reward.KEY=VALUE alone"
            )
        override(settings, text)
    name = settings["task"].pop("name")
    return make_task(name, **settings["task"]), reward_config(settings["reward"])


def _benchmarks(
    asked: Asked, task: Task, encode: Encode, config: Config
) -> dict[str, list[Problem]]:
    """By name, the problems: all of a benchmark file, unless fewer are asked for."""
    usual = 0 if asked.benchmarks else config.eval.problems
    n = usual if asked.problems is None else asked.problems
    task.check_evaluable(n)
    # Of data only the files to evaluate on are read.
    source = task.validation_source(encode) if isinstance(task, Data) else task.source(encode)
    return source.benchmarks(n)
