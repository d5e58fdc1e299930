"""Does local + visitation add up to what a step did to the entropy of a response?

    python -m experiments.visitation
    python -m experiments.visitation --set task.name=countdown --set rollout.max_tokens=24 \\
        --after 5 --prompts 2048

Trains the packaged demo. Around the first optimizer step after each given number of rollouts it
samples fresh responses to fresh prompts at theta and, with the same random numbers, at
theta + factor * (theta' - theta), where theta' is the step that the run took:
    measured    mean of sum_t H_t over the new responses minus the mean over the old ones
    local       mean of sum_t dH_t over the old responses
    visitation  mean of sum_u dlogp_u (H_togo_u - b_u) over the old responses
None of these responses is in the update. Nats per response; +- is half a 95 % interval over
prompts, each response against the one that the same random numbers gave before: so "measured -
local", what the visitation term has to be, is sharper than either. A factor above 1 makes the step
longer than the run's, for more signal, and what first-order terms leave out larger.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from entropy_lab.errors import ConfigError
from entropy_lab.record import create_run
from entropy_lab.stats import response_terms
from entropy_lab.train.config import Config, load_config
from entropy_lab.train.loop import begin_rollout, update
from entropy_lab.train.parts import Parts, build
from entropy_lab.train.policy import model_inputs
from entropy_lab.train.progress import Progress
from entropy_lab.train.randomness import sampling_seed
from entropy_lab.train.rollout import Responses
from entropy_lab.types import TokenStats

BASE = ["probe.deep_every=0", "probe.floor_every=1000", "probe.fixed_responses=0"]
CALL = 64  # prompts of one call to the engine
SCORED = 256  # responses of one forward pass

Weights = list[Tensor]


@dataclass(frozen=True)
class Fresh:
    """Responses to the prompts of one call at some weights, and their statistics there."""

    responses: Responses
    stats: TokenStats

    def total_entropy(self) -> Tensor:
        """sum_t H_t of each response, (B,)."""
        return torch.where(self.responses.mask, self.stats.entropy, 0.0).double().sum(1)

    def length(self) -> Tensor:
        return self.responses.mask.sum(1).double()


def weights(parts: Parts) -> Weights:
    return [p.detach().clone() for p in parts.params]


@torch.no_grad()
def put(parts: Parts, values: Weights) -> None:
    for p, value in zip(parts.params, values, strict=True):
        p.copy_(value)


def score(parts: Parts, responses: Responses) -> TokenStats:
    found = [
        parts.probe.scorer.fresh(model_inputs(responses, slice(a, a + SCORED)))
        for a in range(0, len(responses.mask), SCORED)
    ]
    return TokenStats.cat(found)


def sample(parts: Parts, call: int, group: int, step: int) -> Fresh:
    """The answers of the present weights to prompts and random numbers of (seed, step, call)."""
    config = parts.config
    rng = random.Random(f"{config.run.seed} visitation {step} {call}")
    responses = parts.engine.generate(
        parts.model,
        [parts.tokenizer.encode(p.prompt) for p in parts.task.problems(CALL, rng)],
        n=group,
        max_tokens=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        seed=sampling_seed(config.run.seed, f"visitation {step}", call),
    )
    return Fresh(responses, score(parts, responses))


def measure(
    parts: Parts, start: Weights, ends: list[Weights], prompts: int, group: int
) -> tuple[Tensor, Tensor]:
    """Means of each prompt: at `start` sum H and length, (prompts, 2); for each of `ends` the
    measured change, local and visitation term and change of length, (ends, prompts, 4)."""
    step = parts.probe.step
    before, found = [], []
    for call in range(prompts // CALL):
        put(parts, start)
        old = sample(parts, call, group, step)
        here = torch.stack([old.total_entropy(), old.length()], 1)
        before.append(here.view(CALL, group, 2).mean(1))
        number = torch.arange(CALL).repeat_interleave(group)
        changes = []
        for end in ends:
            put(parts, end)
            moved = score(parts, old.responses)
            terms = response_terms(
                old.responses.mask,
                old.stats.entropy,
                moved.entropy - old.stats.entropy,
                moved.logp - old.stats.logp,
                number,
            )
            new = sample(parts, call, group, step)
            change = new.total_entropy() - old.total_entropy()
            longer = new.length() - old.length()
            each = torch.stack([change, terms.local, terms.visitation, longer], 1)
            changes.append(each.view(CALL, group, 4).mean(1))
        found.append(torch.stack(changes))
    return torch.cat(before), torch.cat(found, 1)


COLUMNS = ("measured", "local", "visitation", "local + visit.", "measured - local",
           "measured - both", "length, tokens")  # fmt: skip


def band(values: Tensor) -> str:
    """Mean over prompts and half of its 95 % interval."""
    return f"{float(values.mean()):+.4f} ±{1.96 * float(values.std()) / len(values) ** 0.5:.4f}"


def show(parts: Parts, factors: list[float], before: Tensor, found: Tensor) -> None:
    own = parts.probe.last_row
    entropy, length = before.mean(0).tolist()
    print(f"\nstep {own['step']}: {entropy:.3f} nats and {length:.2f} tokens per response")
    print(
        f"the probe's own {own['effective_heldout']:.0f} held-out responses: local "
        f"{own['local_heldout']:+.4f}, visitation {own['visitation_heldout']:+.4f}"
    )
    print(f"{'factor':>6}" + "".join(f"{name:>18}" for name in COLUMNS))
    for factor, each in zip(factors, found, strict=True):
        change, local, visitation, longer = each.unbind(1)
        both = local + visitation
        numbers = (change, local, visitation, both, change - local, change - both, longer)
        print(f"{factor:>6g}" + "".join(f"{band(x):>18}" for x in numbers), flush=True)


def run(config: Config, args: argparse.Namespace, folder: Path) -> None:
    run_dir = create_run(folder / "run", config.to_dict(), seeds={"run": config.run.seed})
    with Progress(run_dir, config) as progress:
        parts, _, _ = build(config, run_dir, None, progress)
    minibatches, memory = config.train.minibatches, parts.method.initial_state()
    with parts.probe as probe:
        for rollout in range(max(args.after) + 1):
            scored = parts.sample(config.rollout.prompts, "rollout", rollout)
            steps = parts.micros(scored, rollout, minibatches)
            memory = begin_rollout(parts, steps, memory)
            for age, micros in enumerate(steps):
                start = weights(parts)
                later = steps[age + 1] if age + 1 < minibatches else []
                memory = update(parts, micros, later, rollout, memory)
                probe.commit()
                if age == 0 and rollout in args.after:
                    end = weights(parts)
                    ends = [
                        [a + f * (b - a) for a, b in zip(start, end, strict=True)]
                        for f in args.factors
                    ]
                    result = measure(parts, start, ends, args.prompts, args.group)
                    put(parts, end)
                    show(parts, args.factors, *result)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--config", default=None, help="TOML file; the packaged demo if left out")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--seed", type=int, default=0, help="run.seed: problems and sampling")
    parser.add_argument("--after", type=int, nargs="+", default=[2], help="rollouts")
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--prompts", type=int, default=4096, help=f"a multiple of {CALL}")
    parser.add_argument("--group", type=int, default=16, help="responses to a prompt")
    args = parser.parse_args()
    if args.prompts < CALL or args.prompts % CALL:
        parser.error(f"--prompts {args.prompts} is not a multiple of {CALL}")
    try:
        config = load_config(args.config, [*BASE, f"run.seed={args.seed}", *args.set])
    except ConfigError as error:
        parser.error(str(error))
    print(
        f"{config.run.name}: {config.method.name}, lr {config.optimizer.lr:g}, seed "
        f"{config.run.seed}; {args.prompts} prompts x {args.group} responses at either end"
    )
    with tempfile.TemporaryDirectory(prefix="entropy-lab-") as folder:
        run(config, args, Path(folder))


if __name__ == "__main__":
    main()
