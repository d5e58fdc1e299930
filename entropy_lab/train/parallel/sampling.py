"""Responses sampled by several ranks, each to its share of the prompts."""

from __future__ import annotations

from collections.abc import Callable

from entropy_lab.probe.world import Alone
from entropy_lab.train.rollout import Responses


def sample_together(world: Alone, ask: Callable[..., Responses], prompts: int) -> Responses:
    """The responses to all prompts, of which each rank samples those to a share of its own."""
    first, last = (prompts * r // world.size for r in (world.rank, world.rank + 1))
    own = [ask(share=slice(first, last))] if last > first else []
    shares = world.collect([own])
    return Responses.cat([r for share in shares for r in share])
