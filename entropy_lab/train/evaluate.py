"""Evaluation while training: avg@k, pass@k, and the entropy to set them against."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_lab.record import write_evals
from entropy_lab.record.evals import write_answers
from entropy_lab.train.exam import Sampling, ask, examinee, portions, summary
from entropy_lab.train.pass_at_k import powers_of_two
from entropy_lab.train.settings import EvalConfig

if TYPE_CHECKING:
    from entropy_lab.train.parts import Parts
    from entropy_lab.train.progress import Progress


def evaluate_if_due(parts: Parts, run_dir: Path, progress: Progress) -> float:
    """Evaluate the present weights where `[eval]` asks for it; the seconds it took, 0 if not.

    That is before the first rollout, after each `every` of them and after the last. The rows go to
    RUN/evals.parquet, and no later than the checkpoint of these weights: a run that continues from
    a checkpoint has all evaluations up to it. Nothing of the training is touched.
    """
    every, train = parts.config.eval.every, parts.config.train
    rollout, within = divmod(parts.probe.step, train.minibatches)
    if not every or within or (rollout % every and rollout != train.rollouts):
        return 0.0
    started = time.perf_counter()
    rows = evaluate(parts, parts.probe.step, run_dir)
    if parts.world.rank == 0:
        write_evals(run_dir, rows)
    parts.world.told(None)  # the score of a checkpoint reads them
    progress.evaluated(rows)
    return time.perf_counter() - started


def evaluate(parts: Parts, step: int, run_dir: Path | None = None) -> list[dict[str, Any]]:
    """The rows of evals.parquet for the present weights, after `step` optimizer steps.

    With eval.keep_answers the responses go to RUN/eval/training/step-NNNNNN/BENCHMARK. `samples`
    responses to each problem of the task's benchmarks: held-out problems, or those of its
    validation files; a pure function of weights, settings and run.seed. Several ranks share the
    portions, each of which has a seed of its own.
    """
    config, e = parts.config, parts.config.eval
    who = examinee(config, parts.model, parts.tokenizer, parts.engine, parts.rewarder)
    max_tokens = e.max_tokens or config.rollout.max_tokens
    how = Sampling(e.samples, e.temperature, e.top_p, max_tokens, config.run.seed)
    found, world = [], parts.world
    world.fill()
    world.at("an evaluation")
    for name, problems in parts.source.benchmarks(e.problems).items():
        asked = []
        for first, last in world.deal(list(portions(problems, e.samples, who.batch))):
            answers = ask(who, problems, first, last, how, step)
            if e.keep_answers and run_dir is not None:
                place = run_dir / "eval" / "training" / f"step-{step:06d}" / name
                write_answers(place, first, last, answers)
            asked.append(answers)
        rows = [row for portion in world.collect(asked) for row in portion]
        found += summary(name, step, rows, how, chosen_k(e))
    return found


def chosen_k(e: EvalConfig) -> list[int]:
    """The k of pass@k: eval.k, or 1, 2, 4, ... up to eval.max_k or eval.samples."""
    return sorted(set(e.k)) or powers_of_two(e.max_k or e.samples)
