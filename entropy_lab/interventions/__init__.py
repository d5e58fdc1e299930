"""Methods that change the policy loss, by name; INTERVENTIONS is the registry."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from entropy_lab.errors import ConfigError, nearest
from entropy_lab.interventions.base import Clipped, Intervention, Method, plan_step
from entropy_lab.interventions.clip_cov import ClipCov
from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.interventions.entropy_bonus import EntropyBonus
from entropy_lab.interventions.entropy_target import EntropyTarget
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.interventions.influence_steer import InfluenceSteer
from entropy_lab.interventions.kl_cov import KlCov
from entropy_lab.interventions.steer import Steer

INTERVENTIONS: dict[str, type[Method]] = {
    "grpo": Grpo,
    "clip_higher": ClipHigher,
    "clip_cov": ClipCov,
    "kl_cov": KlCov,
    "entropy_bonus": EntropyBonus,
    "steer": Steer,
    "influence_steer": InfluenceSteer,
    "entropy_target": EntropyTarget,
}

__all__ = [
    "INTERVENTIONS",
    "ClipCov",
    "ClipHigher",
    "Clipped",
    "EntropyBonus",
    "EntropyTarget",
    "Grpo",
    "InfluenceSteer",
    "Intervention",
    "KlCov",
    "Method",
    "Steer",
    "make_method",
    "plan_step",
]


def make_method(name: str, **params: Any) -> Method:
    """The intervention called `name` with `params` as its fields.

    Raises ConfigError for an unknown name or parameter (with the nearest valid ones), a missing
    parameter, a wrong type and a value out of range.
    """
    if name not in INTERVENTIONS:
        raise ConfigError(f"unknown method {name!r}: {nearest(name, INTERVENTIONS)}")
    method = INTERVENTIONS[name]
    valid = {f.name: f for f in fields(method)}
    for key in params:
        if key not in valid:
            raise ConfigError(f"{name} has no parameter {key!r}: {nearest(key, valid)}")
    missing = [key for key, f in valid.items() if f.default is MISSING and key not in params]
    if missing:
        raise ConfigError(f"{name} needs {', '.join(missing)}: it has no published default, set it")
    return method(**params)
