"""How large a run's directory will be at its end, said before it starts."""

from __future__ import annotations

from typing import Any

from entropy_lab.record import token_schema
from entropy_lab.record.budget import SAMPLE_BYTES, TEXT_SHARE, row_bytes
from entropy_lab.train.best import score_name
from entropy_lab.train.config import Config
from entropy_lab.train.memory import memory_parts, shape_of

_CHARACTERS = 4.0  # of a token of text
_LINE = 6000.0  # bytes of a step's line in metrics.jsonl and its row in steps/


def disk_lines(config: Config, model: Any) -> list[str]:
    """What stays in checkpoints/, replay/ and the log, responses at full length, and their sum."""
    t = config.train
    parts = memory_parts(config, shape_of(model), 1)
    one = sum(part.bytes for part in parts if part.what.startswith(("weights (", "optimizer (")))
    made = -(-t.rollouts // t.checkpoint_every) if t.checkpoint_every else 1
    kept = min(made, t.keep_checkpoints + bool(t.keep_best)) if t.keep_checkpoints else made
    best = f", the best by {score_name(config)} among them" if t.keep_best else ""
    lines = [f"disk: {kept} of {made} checkpoints kept, {size(one)} each{best}"]
    points = -(-t.rollouts // t.replay_every) if t.replay_every else 0
    if points:
        stay = min(points, t.keep_replays or points)
        lines.append(f"disk: {stay} of {points} replay points kept, {size(one)} each and their "
                     "minibatches")  # fmt: skip
        points = stay
    tokens, told = _tokens(config)
    samples = _samples(config)
    lines += told
    lines.append(f"disk: samples of at most {size(samples / t.rollouts)} a rollout, "
                 f"{size(samples)} in all")  # fmt: skip
    log, limit = tokens + samples, t.max_log_gb * 1e9
    if 0 < limit < log:
        lines.append(_limited(config, tokens, samples))
        log = limit
    whole = (kept + points) * one + log + _LINE * t.rollouts * t.minibatches
    but = ", evaluations not counted" if config.eval.every else ""
    return [*lines, f"disk: {size(whole)} at the end of the run{but}"]


def _tokens(config: Config) -> tuple[float, list[str]]:
    """Bytes of all token rows, and a line about them."""
    t, p, r = config.train, config.probe, config.rollout
    if not p.enabled:
        return 0.0, []
    row = row_bytes(token_schema(p.profile, deep=p.deep_every > 0))
    sides = 1 + (p.held_out and (t.minibatches > 1 or p.fixed_responses > 0))
    rows = r.prompts * r.group_size / t.minibatches * p.fraction * r.max_tokens * sides
    every = f"each {p.every}. step" if p.every > 1 else "a step"
    whole = rows * row * -(-t.rollouts * t.minibatches // p.every)
    return whole, [
        f"disk: log of at most {rows:,.0f} token rows {every}, {size(rows * row)}; "
        f"{size(whole)} in all"
    ]


def _samples(config: Config) -> float:
    """Bytes of all rows of samples/; with dynamic sampling of as many as it may draw."""
    r = config.rollout
    drawn = r.prompts * r.group_size * (r.max_draws if r.dynamic_sampling else 1)
    one = SAMPLE_BYTES + TEXT_SHARE * _CHARACTERS * r.max_tokens
    return drawn * one * config.train.rollouts


def _limited(config: Config, tokens: float, samples: float) -> str:
    """Where a log at full length meets its limit, and what would fit."""
    limit, p = config.train.max_log_gb * 1e9, config.probe
    steps = config.train.rollouts * config.train.minibatches
    met = int(steps * limit / (tokens + samples))
    advice = ""
    if tokens and limit > samples:
        fits = -(-int(p.every * tokens) // int(limit - samples))
        advice = f"; probe.every = {fits} would cover the whole run"
    return (
        f"warning: with all responses at full length the log meets train.max_log_gb = "
        f"{config.train.max_log_gb:g} at step {met} of {steps}, and token rows and texts are left "
        f"out from there{advice}"
    )


def size(amount: float) -> str:
    """Bytes in units of 1000: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
