"""Which prompts a rollout answers: length limit, dynamic sampling, and what the log is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.train.gather import Scored, left_out_rows, sample_rows
from entropy_lab.train.policy import Micro
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.rewards import Rewarder
from entropy_lab.train.tasks import Problem, Source, prompt_text

if TYPE_CHECKING:
    from entropy_lab.train.config import Config
    from entropy_lab.train.parts import Parts

_MOST_REDRAWS = 100


def check_problems(config: Config, source: Source, rewarder: Rewarder, tokenizer: Any) -> None:
    """Raise ConfigError, before anything is trained, for the first problem of the files that cannot
    be graded, and with rollout.long_prompts = "refuse" for the longest prompt over the limit."""
    held_out = source.benchmarks(config.eval.problems) if config.eval.every else {}
    rewarder.check([*source.training, *(p for part in held_out.values() for p in part)])
    limit = config.rollout.max_prompt_tokens
    if not limit or config.rollout.long_prompts != "refuse" or not source.training:
        return
    lengths = [len(encode_prompt(tokenizer, p.prompt)) for p in source.training]
    if max(lengths) > limit:
        over, where = sum(n > limit for n in lengths), lengths.index(max(lengths))
        longest = prompt_text(source.training[where].prompt)[:60]
        raise ConfigError(
            f"{over:,} of {len(lengths):,} prompts have more than rollout.max_prompt_tokens = "
            f"{limit} tokens; the longest, {longest!r}, has {max(lengths)}: raise it, or set "
            'rollout.long_prompts to "drop" or "left"'
        )


def draw_prompts(
    parts: Parts, count: int, name: str, number: int
) -> tuple[list[Problem], list[list[int]], dict[str, float]]:
    """`count` problems, the token ids of their prompts, and how many were cut or dropped.

    A prompt of more than rollout.max_prompt_tokens loses tokens on the left, or its place goes to
    a problem of a draw of its own. Raises RunError where such a prompt is refused, or where
    problem after problem is too long.
    """
    limit, policy = parts.config.rollout.max_prompt_tokens, parts.config.rollout.long_prompts
    kept: list[tuple[Problem, list[int]]] = []
    too_long = redraws = 0
    problems = parts.draw(count, name, number)
    while True:
        for problem in problems:
            ids = encode_prompt(parts.tokenizer, problem.prompt)
            excess = bool(limit) and len(ids) > limit
            too_long += excess
            if excess and policy == "refuse":
                raise RunError(
                    f"the prompt {prompt_text(problem.prompt)[:60]!r} has {len(ids)} tokens, more "
                    f"than rollout.max_prompt_tokens = {limit}: raise it, or set "
                    'rollout.long_prompts to "drop" or "left"'
                )
            if not excess or policy == "left":
                kept.append((problem, ids[-limit:] if excess else ids))
        if len(kept) == count:
            break
        redraws += 1
        if redraws > _MOST_REDRAWS:
            raise RunError(
                f"{too_long} prompts have more than rollout.max_prompt_tokens = {limit} tokens and "
                f"were dropped, and {count - len(kept)} are still missing: raise the limit"
            )
        problems = parts.draw(count - len(kept), f"{name} replacement {redraws}", number)
    told = {"prompts_cut" if policy == "left" else "prompts_dropped": float(too_long)}
    return [p for p, _ in kept], [ids for _, ids in kept], told if limit else {}


def draw_rollout(parts: Parts, number: int) -> Scored:
    """The responses that rollout `number` trains on: a function of weights and seed.

    With dynamic sampling batches of `prompts` are drawn until so many groups have unequal
    rewards (DAPO, arXiv 2503.14476, section 3.2) or max_draws is reached.
    """
    r = parts.config.rollout
    draws = [parts.sample(r.prompts, "rollout", number)]
    if not r.dynamic_sampling:
        return draws[0]
    while sum(map(unequal, draws)) < r.prompts and len(draws) < r.max_draws:
        draws.append(parts.sample(r.prompts, f"rollout draw {len(draws)}", number))
    return choose_groups(draws, r.prompts)


def unequal(scored: Scored) -> int:
    """How many groups have rewards that differ."""
    return sum(_varies(scored))


def _varies(scored: Scored) -> list[bool]:
    reward = scored.reward.view(-1, scored.group_size)
    return (reward.amax(1) != reward.amin(1)).tolist()


def choose_groups(draws: Sequence[Scored], wanted: int) -> Scored:
    """The first `wanted` groups with unequal rewards, in the order they were drawn in.

    Where there are fewer, the first groups with equal rewards fill up, so that shapes hold; they
    have no advantage. Whatever else was drawn is left out, a surplus included (as verl's DAPO
    recipe drops it). facts: draws, groups_drawn, groups_unequal (of those), groups_filled.
    """
    whole = Scored.cat(draws) if len(draws) > 1 else draws[0]
    varies = _varies(whole)
    found = [g for g, differs in enumerate(varies) if differs][:wanted]
    filled = [g for g, differs in enumerate(varies) if not differs][: wanted - len(found)]
    chosen = sorted(found + filled)
    rest = sorted(set(range(len(varies))) - set(chosen))
    facts = {
        "draws": float(len(draws)),
        "groups_drawn": float(len(varies)),
        "groups_unequal": float(sum(varies)),
        "groups_filled": float(len(filled)),
    }
    for draw in draws:
        for key, value in (draw.facts or {}).items():
            facts[key] = facts.get(key, 0.0) + value
    if not rest:
        return replace(whole, facts=facts)
    kept = whole.groups(chosen)
    return replace(
        kept, responses=kept.responses.trimmed(), left_out=whole.groups(rest), facts=facts
    )


def log_samples(parts: Parts, scored: Scored, steps: list[list[Micro]], rollout: int) -> None:
    """Write the rows of the samples table: what is trained on, then what was left out.

    Of several ranks each writes those of its own micro-batches, the first one what was left out.
    """
    probe, world = parts.probe, parts.world
    rows = sample_rows(scored, steps, probe.inclusion_prob, rollout, probe.step)
    if world.size > 1:
        own = [i for i, micro in enumerate(rows["micro"].tolist()) if world.owns(micro)]
        rows = {name: [values[i] for i in own] for name, values in rows.items()}
    probe.samples(rows)
    if scored.left_out is not None and world.rank == 0:
        first, groups = len(scored.problems), parts.rules.groups
        probe.samples(left_out_rows(scored.left_out, rollout, probe.step, first, groups))


def warnings_of(scored: Scored, rollout: int) -> dict[str, str]:
    """What the user is told of a draw, by kind; the numbers of every rollout are in the log."""
    facts, said = scored.facts or {}, {}
    if filled := int(facts.get("groups_filled", 0)):
        said["filled"] = (
            f"rollout {rollout}: {filled} of {len(scored.problems)} groups have equal rewards "
            f"after {facts['draws']:.0f} draws (rollout.max_draws) and train nothing"
        )
    for key, what in (("prompts_cut", "cut on the left"), ("prompts_dropped", "replaced")):
        if facts.get(key):
            said[key] = (
                f"rollout {rollout}: {facts[key]:.0f} prompts were longer than "
                f"rollout.max_prompt_tokens and {what}"
            )
    return said
