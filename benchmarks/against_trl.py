"""T1: steps a second of the bundled trainer against TRL's GRPOTrainer on the packaged demo's job.

    pip install 'entropy-lab[trl]'
    python -m benchmarks.against_trl [--rollouts N] [--threads N]

Bars: at least 1.3 times TRL without the probe, at least 1.0 times with it on every row and step;
the median over rollouts, quartiles beside it, and the ratio of the sums.
Written for trl==1.16.0, transformers==5.19.0, torch==2.13.0, accelerate==1.15.0, datasets==5.2.0.

The same job: warmed-up model, problems in the same order, 32 prompts x 8 responses of at most 12
tokens, two optimizer steps of 128 responses a rollout, clipped loss with dual clip 10 averaged over
the step's tokens, no KL, AdamW, gradient clip 1, float32. TRL's settings: loss_type "bnpo" (that
average, where a step is one batch), delta for the dual clip, all 128 responses in one forward and
backward, fused AdamW (its default), no gradient checkpointing, and nothing
logged or saved on the way. With two steps a rollout TRL takes old_logp from a pass of its own.

"probe": before and after each step, logp, entropy and the moments of all of the step's tokens, of
all of the next minibatch's (held out; at the first of two steps) and of 64 fixed responses; closed
forms, noise floor and gradient audit at every tenth step; the columns of the profile "core".
"own rows": the step's tokens alone. A process each; they take turns, rollout by rollout and in
changing order, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._bars import line, note
from benchmarks._loop_parts import split, time_parts
from entropy_lab.train.config import Config, load_config

WARM = 2  # rollouts that are not counted
SIDES = {
    "TRL": None,
    "without probe": ["probe.enabled=false"],
    "probe": [],
    "own rows": ["probe.held_out=false", "probe.fixed_responses=0"],
}
DEMANDS = {"without probe": 1.3, "probe": 1.0}


class Turns:
    """The worker's side: waits for its turn, and tells what the rollout took and brought."""

    def __init__(self, pipe: Connection):
        self.pipe, self.reward, self.parts = pipe, 0.0, {}
        self.go()

    def go(self) -> None:
        self.pipe.recv()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        parts = dict(self.parts)
        self.parts.clear()
        self.pipe.send({"wall": wall, "cpu": cpu, "reward": self.reward, "parts": parts})
        self.go()


def settings(rollouts: int, threads: int, extra: list[str]) -> Config:
    """The packaged demo, without its deep steps."""
    base = ["probe.deep_every=0", "probe.profile=core", "train.checkpoint_every=0"]
    base.append("train.micro_batch=128")  # a step is one batch, as it is for TRL
    size = [f"train.rollouts={rollouts}", f"run.threads={threads}"]
    return load_config(None, [*base, *size, *extra])


def problems(config: Config) -> list:
    """What `Parts.sample` draws for the rollouts of a run, in their order."""
    from entropy_lab.train.tasks import make_task

    task = make_task(config.task.name, **config.task.params)
    return [
        problem
        for number in range(config.train.rollouts)
        for problem in task.problems(
            config.rollout.prompts, random.Random(f"{config.run.seed} rollout problems {number}")
        )
    ]


def run_trl(
    config: Config, folder: Path, turns: Turns, prepare: Callable[[Any], object] = id
) -> None:
    """TRL on the job, a turn a rollout; prepare: told the trainer before it begins."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from entropy_lab.train.model import load_model
    from entropy_lab.train.tasks import make_task

    task = make_task(config.task.name, **config.task.params)
    drawn = problems(config)
    by_prompt = {p.prompt: p for p in drawn}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        values = [task.reward(text, by_prompt[prompt]) for prompt, text in pairs]
        turns.reward = float(np.mean(values))
        return values

    class Pass(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % config.train.minibatches == 0:
                turns.end()

    model, tokenizer = load_model(config)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=trl_settings(config, folder),
        train_dataset=Dataset.from_dict({"prompt": [p.prompt for p in drawn]}),
        processing_class=tokenizer,
    )
    prepare(trainer)
    trainer.add_callback(Pass())  # the last of them: what others do at the end of a step counts
    trainer.train()


def trl_settings(config: Config, folder: Path) -> Any:
    from trl import GRPOConfig

    o, r, t = config.optimizer, config.rollout, config.train
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=t.rollouts * t.minibatches,
        per_device_train_batch_size=r.prompts * r.group_size // t.minibatches,
        steps_per_generation=t.minibatches,
        num_generations=r.group_size,
        max_completion_length=r.max_tokens,
        temperature=r.temperature,
        beta=0.0,
        epsilon=0.2,
        delta=10.0,
        loss_type="bnpo",
        scale_rewards="group",
        learning_rate=o.lr,
        lr_scheduler_type="constant",
        adam_beta1=o.beta1,
        adam_beta2=o.beta2,
        adam_epsilon=o.eps,
        weight_decay=o.weight_decay,
        max_grad_norm=o.clip_norm,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        shuffle_dataset=False,
        seed=config.run.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def run_ours(config: Config, folder: Path, turns: Turns) -> None:
    from entropy_lab.record import create_run
    from entropy_lab.train import loop
    from entropy_lab.train.progress import Progress

    class Pass(Progress):
        def step(self, metrics: Any, step: int, total: int) -> None:
            rewards.append(metrics["reward"])
            if step % config.train.minibatches == 0:
                turns.reward = float(np.mean(rewards[-config.train.minibatches :]))
                turns.end()

    rewards: list[float] = []
    time_parts(turns.parts)
    create_run(folder, config.to_dict(), seeds=0)
    with Pass(folder, config) as progress:
        loop.train(config, folder, None, progress)


def work(side: str, config: Config, folder: Path, pipe: Connection) -> None:
    torch.set_num_threads(config.run.threads)
    turns = Turns(pipe)
    (run_trl if SIDES[side] is None else run_ours)(config, folder / side, turns)
    pipe.send(None)


def measure(rollouts: int, threads: int, folder: Path) -> dict[str, list[dict]]:
    """What every side took for each of its rollouts; the order turns with the rollout."""
    from entropy_lab.train.model import load_model

    torch.set_num_threads(threads)
    load_model(settings(rollouts, threads, []))  # made once, before anybody's clock runs
    context = multiprocessing.get_context("spawn")
    pipes, found = {}, defaultdict(list)
    workers = []
    for side, extra in SIDES.items():
        pipes[side], other = context.Pipe()
        config = settings(rollouts, threads, extra or [])
        workers.append(
            context.Process(target=work, args=(side, config, folder, other), daemon=True)
        )
        workers[-1].start()
        other.close()
    order = list(SIDES)
    for number in range(rollouts):
        for side in order if number % 2 else reversed(order):
            pipes[side].send("go")
            found[side].append(pipes[side].recv())
        order.append(order.pop(0))
    for side, worker in zip(SIDES, workers, strict=True):
        pipes[side].send("go")
        pipes[side].recv()
        worker.join()
    return found


def report(found: dict[str, list[dict]], minibatches: int) -> None:
    def per_step(side: str, what: str) -> np.ndarray:
        return np.array([r[what] for r in found[side][WARM:]]) / minibatches

    for side in SIDES:
        wall, cpu = (statistics.median(per_step(side, what)) for what in ("wall", "cpu"))
        note(f"{side}: s a step (CPU s)", f"{wall:.3f} ({cpu:.3f})")
    for side in list(SIDES)[1:]:
        ratios = per_step("TRL", "wall") / per_step(side, "wall")
        ratio, demand = statistics.median(ratios), DEMANDS.get(side)
        low, high = np.quantile(ratios, [0.25, 0.75])
        what = f"over TRL, {side} [{low:.2f}, {high:.2f}]"
        if demand:
            line("T1", what, f"{ratio:.2f}", f">= {demand}", ratio >= demand)
        else:
            note(what, f"{ratio:.2f}")
        cpu = statistics.median(per_step("TRL", "cpu") / per_step(side, "cpu"))
        whole = per_step("TRL", "wall").sum() / per_step(side, "wall").sum()
        note("the same in CPU seconds", f"{cpu:.2f}")
        note("the same over the whole run", f"{whole:.2f}")
    for side in list(SIDES)[1:]:
        counted = found[side][WARM:]
        walls, parts = [r["wall"] for r in counted], [r["parts"] for r in counted]
        print(f"    {side}, ms a step: {split(walls, parts, minibatches)}")
    tenth = max(1, len(found["TRL"]) // 6)
    for side in SIDES:
        rewards = [r["reward"] for r in found[side]]
        first, last = np.mean(rewards[:tenth]), np.mean(rewards[-tenth:])
        note(f"{side}: reward, first and last {tenth} rollouts", f"{first:.2f} -> {last:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.against_trl")
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if find_spec("trl") is None:
        print("trl is not installed, nothing to compare with: pip install 'entropy-lab[trl]'")
        return
    folder = Path(tempfile.mkdtemp(prefix="entropy-lab-bench-"))
    try:
        found = measure(options.rollouts, options.threads, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(found, settings(options.rollouts, options.threads, []).train.minibatches)


if __name__ == "__main__":
    main()
