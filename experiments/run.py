"""The experiments: what is run, with which settings, by one command that can be repeated.

    python -m experiments.run 02_methods [--seeds 5] [--jobs 2] [--runs runs/experiments]

Trains every arm with every seed (finished runs are kept, interrupted ones go on), analyzes them
together and writes the small tables that the figures are drawn from to experiments/results/NAME.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.results import write_results
from experiments.sweep import jobs_of, sweep


@dataclass(frozen=True)
class Experiment:
    """arms: name -> overrides of the settings in configs/NAME.toml; question: what it asks."""

    question: str
    arms: Mapping[str, Sequence[str]]
    seeds: int = 5


def method(name: str, **params: object) -> list[str]:
    """The overrides that choose a method and set its parameters."""
    shown = {k: str(v).lower() if isinstance(v, bool) else v for k, v in params.items()}
    return [f"method.name={name}", *(f"method.{k}={v}" for k, v in shown.items())]


METHODS = {
    "grpo": method("grpo"),
    "clip_higher": method("clip_higher"),
    "clip_lower": method("clip_lower", clip_low=0.1),
    "clip_cov": method("clip_cov"),
    "kl_cov": method("kl_cov"),
    "entropy_bonus": method("entropy_bonus", beta=0.01),
    "adaptive_entropy": method("adaptive_entropy", variant="trl", target=0.3),
    "steer": method("steer"),
    "fork_tokens": method("fork_tokens"),
    "w_reinforce": method("w_reinforce"),
    "entropy_advantage": method("entropy_advantage"),
    "ce_gppo": method("ce_gppo"),
    "cispo": method("cispo"),
    "stare": method("stare"),
    "gspo": method("gspo"),
    "entropy_pi": method("entropy_pi"),
    "influence_steer": method("influence_steer"),
    "entropy_target": method("entropy_target", target=-2e-4),
    # The dose matched: about 2 % of the tokens instead of the sources' 0.02-0.2 %.
    "clip_cov_2pct": method("clip_cov", ratio=0.02, lb=0.1),
    "kl_cov_2pct": method("kl_cov", ratio=0.02),
}
# Rows of the paper's Table 3 that are methods; SimpleRL-Zoo and Eurus-PRIME are models of others.
TABLE_3 = {
    **{name: METHODS[name] for name in ("grpo", "clip_higher", "clip_cov", "kl_cov", "steer")},
    **{name: METHODS[name] for name in ("fork_tokens", "w_reinforce", "entropy_advantage")},
    "opo": method("opo"),
    "entropy_loss": method("entropy_bonus", beta=0.01),  # its coefficient there is not known here
}
PAPER = ("qwen2.5_math_7b", "qwen2.5_math_1.5b", "qwen2.5_14b", "llama3.2_3b")
EXPERIMENTS = {
    "01_predictors": Experiment(
        "How much of a token's entropy change does each form predict, over seeds?",
        {"grpo": []},
    ),
    "02_methods": Experiment(
        "What does each method do to entropy, reward and held-out pass@k?", METHODS
    ),
    "03_replay": Experiment(
        "What does each method's own step do from the very same state?",
        {"grpo": ["train.replay_every=5"]},
    ),
    "04_random_reward": Experiment(
        "What does the clip alone do to entropy, when rewards are coin flips?",
        {
            f"low{low:g}_high{high:g}": method(
                "clip_lower", clip_low=low, clip_high=high, random_reward=True
            )
            for low, high in ((0.2, 0.2), (0.2, 0.05), (0.05, 0.2), (0.2, 1.0), (1.0, 0.2))
        },
    ),
    "05_lambda_min": Experiment(
        "How does STEER's smallest weight change entropy?",
        {f"lambda{v:g}": method("steer", lambda_min=v) for v in (0.3, 0.5, 0.7, 0.9)},
    ),
    "06_extreme_clipping": Experiment(
        "What happens without a working clip (0.99 below, 5 above)?",
        {
            "grpo": method("grpo"),
            "grpo_extreme": method("grpo", clip_low=0.99, clip_high=5.0),
            "steer": method("steer"),
            "steer_extreme": method("steer", clip_low=0.99, clip_high=5.0),
        },
    ),
    "07_scope": Experiment(
        "Does it matter whether a method normalises over the minibatch or the micro-batch?",
        {
            f"{name}_{scope}": method(name, scope=scope, **params)
            for name, params in (
                ("steer", {}), ("clip_cov", {"ratio": 0.02, "lb": 0.1}), ("kl_cov", {"ratio": 0.02})
            )
            for scope in ("minibatch", "microbatch")
        },
    ),
    **{
        f"paper/{model}": Experiment("What does each method reach on six benchmarks?", TABLE_3, 2)
        for model in PAPER
    },
    "paper/code": Experiment(
        "What do GRPO and STEER reach on programs?", {n: METHODS[n] for n in ("grpo", "steer")}, 2
    ),
    "paper/extreme_clipping": Experiment(
        "What happens to a 7 B model without a working clip?",
        {name: method(name, clip_low=0.99, clip_high=5.0) for name in ("grpo", "steer")},
        seeds=2,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one experiment, or the rest of it")
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, help="how many (default: the experiment's own)")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--set", action="append", default=[], help="for every arm: section.key=v")
    parser.add_argument("--partial", action="store_true", help="tables of what is finished")
    parser.add_argument("--train-only", action="store_true", help="leave the tables for later")
    args = parser.parse_args()
    experiment = EXPERIMENTS[args.name]
    seeds = range(args.seeds or experiment.seeds)
    jobs = jobs_of(args.name, experiment.arms, list(seeds), args.runs, args.set)
    finished = sweep(jobs, args.jobs)
    if len(finished) < len(jobs):
        print(f"{len(jobs) - len(finished)} runs are not finished: repeat the command")
        if not args.partial:
            sys.exit(1)
    if not args.train_only:
        write_results(args.name, finished, args.jobs)


if __name__ == "__main__":
    main()
