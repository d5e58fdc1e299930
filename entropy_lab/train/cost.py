"""What the probe costs: counted in forward passes before a run, measured in seconds after it."""

from __future__ import annotations

import pandas as pd

from entropy_lab.interventions import make_method
from entropy_lab.probe.cost import shares
from entropy_lab.train.config import Config

_UPDATE = 3.0  # a forward and a backward, in forward passes over the same rows
_FROZEN = 2.0  # the same without the products that give frozen weights their gradients
_JVP = 3.0  # a pass with forward-mode derivatives, in plain attention
_FLOOR_ROWS = 8 * 2 * 2  # responses x (theta, theta') x the cost of float64


def estimated_cost(config: Config) -> dict[str, float]:
    """Extra time of each part of the probe as a share of the update phase without it.

    Passes are counted in forwards over one minibatch: own rows once after the step (a sampled
    fraction f before it as well: 2 f), held-out rows likewise (the rollout's old-logprob pass is
    the first "before"), the fixed set, the checks of floor steps and the passes of deep steps. An
    update is 3 forwards (2 where adapters alone are trained), one more with a method that reads
    statistics and one more with gradient checkpointing. Keys: own, held_out, fixed, checks, deep;
    empty without a probe.
    """
    p, minibatches = config.probe, config.train.minibatches
    if not p.enabled:
        return {}
    size = config.rollout.prompts * config.rollout.group_size / minibatches
    method = make_method(config.method.name, **config.method.params)
    backward = _FROZEN if config.model.lora_rank and not config.model.trainable else _UPDATE
    update = backward + bool(method.needs) + config.model.gradient_checkpointing
    f = p.fraction
    # In an arithmetic of its own no pass of the trainer can serve as "before".
    shared = f == 1 and (config.model.autocast == "none" and p.dtype != "float64")
    own = 1.0 if shared else 2 * f
    held = 0.0
    if p.held_out and minibatches > 1:
        held = (own + 2 * f * (minibatches - 2)) / minibatches
    groups = -(-p.fixed_responses // config.rollout.group_size)
    fixed = groups * config.rollout.group_size / size * (1 if p.every == 1 else 2)
    forms = 5 if p.jvp == "slope" else 4 + 4 * _JVP  # head, last block, two points of the path
    pushes = 4 if p.jvp == "slope" else 2 * _JVP  # influence and influence_marginal
    parts = {
        "own": own,
        "held_out": held,
        "fixed": fixed,
        "checks": (backward + f + _FLOOR_ROWS / size) / p.floor_every,
        "deep": (forms * f + pushes + backward * f) / p.deep_every if p.deep_every else 0.0,
    }
    return {name: forwards / update / p.every for name, forwards in parts.items()}


def announced(config: Config) -> str:
    """The estimate as one line; empty without a probe."""
    parts = estimated_cost(config)
    if not parts:
        return ""
    named = {
        "own": "the step's rows",
        "held_out": "held-out rows",
        "fixed": "the fixed set",
        "checks": "floor steps",
        "deep": "deep steps",
    }
    shown = ", ".join(f"{named[k]} {v:.0%}" for k, v in parts.items() if v >= 0.005)
    return f"probe: about {sum(parts.values()):.0%} on top of the updates ({shown})"


def measured_cost(metrics: pd.DataFrame) -> dict[str, float]:
    """share: seconds in the probe over seconds of the updates without them; seconds of both."""
    if metrics.empty or not {"time_probe", "time_update"} <= set(metrics):
        return {}
    probe, update = (float(metrics[c].sum()) for c in ("time_probe", "time_update"))
    return shares(probe, update - probe) if update > probe else {}
