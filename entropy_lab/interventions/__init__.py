"""Methods that change the policy loss, by name; INTERVENTIONS is the registry."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from entropy_lab.errors import ConfigError, nearest
from entropy_lab.interventions.adaptive_entropy import AdaptiveEntropy
from entropy_lab.interventions.bapo import Bapo
from entropy_lab.interventions.base import Clipped, Intervention, Method, plan_step
from entropy_lab.interventions.ce_gppo import CeGppo
from entropy_lab.interventions.cispo import Cispo
from entropy_lab.interventions.clip_cov import ClipCov
from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.interventions.clip_lower import ClipLower
from entropy_lab.interventions.dppo_kl import DppoKl
from entropy_lab.interventions.dppo_tv import DppoTv
from entropy_lab.interventions.dr_grpo import DrGrpo
from entropy_lab.interventions.entrocraft import Entrocraft
from entropy_lab.interventions.entropy_advantage import EntropyAdvantage
from entropy_lab.interventions.entropy_bonus import EntropyBonus
from entropy_lab.interventions.entropy_disc_batch import EntropyDiscBatch
from entropy_lab.interventions.entropy_disc_vocab import EntropyDiscVocab
from entropy_lab.interventions.entropy_pi import EntropyPi
from entropy_lab.interventions.entropy_target import EntropyTarget
from entropy_lab.interventions.erc import Erc
from entropy_lab.interventions.fork_tokens import ForkTokens
from entropy_lab.interventions.grpo import Grpo
from entropy_lab.interventions.gspo import Gspo
from entropy_lab.interventions.influence_steer import InfluenceSteer
from entropy_lab.interventions.kl_cov import KlCov
from entropy_lab.interventions.opo import Opo
from entropy_lab.interventions.pos_adv_reweight import PosAdvReweight
from entropy_lab.interventions.qae import Qae
from entropy_lab.interventions.quadrant import Quadrant
from entropy_lab.interventions.repo_r import RepoR
from entropy_lab.interventions.rloo import Rloo
from entropy_lab.interventions.stare import Stare
from entropy_lab.interventions.steer import Steer
from entropy_lab.interventions.unlikeliness import Unlikeliness
from entropy_lab.interventions.w_reinforce import WReinforce

INTERVENTIONS: dict[str, type[Method]] = {
    "grpo": Grpo,
    "clip_higher": ClipHigher,
    "clip_cov": ClipCov,
    "kl_cov": KlCov,
    "entropy_bonus": EntropyBonus,
    "steer": Steer,
    "clip_lower": ClipLower,
    "fork_tokens": ForkTokens,
    "w_reinforce": WReinforce,
    "entropy_advantage": EntropyAdvantage,
    "unlikeliness": Unlikeliness,
    "opo": Opo,
    "dr_grpo": DrGrpo,
    "rloo": Rloo,
    "qae": Qae,
    "ce_gppo": CeGppo,
    "cispo": Cispo,
    "erc": Erc,
    "dppo_tv": DppoTv,
    "dppo_kl": DppoKl,
    "gspo": Gspo,
    "quadrant": Quadrant,
    "adaptive_entropy": AdaptiveEntropy,
    "entropy_disc_batch": EntropyDiscBatch,
    "entropy_disc_vocab": EntropyDiscVocab,
    "stare": Stare,
    "entropy_pi": EntropyPi,
    "entrocraft": Entrocraft,
    "pos_adv_reweight": PosAdvReweight,
    "repo_r": RepoR,
    "bapo": Bapo,
    "influence_steer": InfluenceSteer,
    "entropy_target": EntropyTarget,
}

__all__ = [
    "CeGppo",
    "Cispo",
    "ClipCov",
    "ClipHigher",
    "ClipLower",
    "Clipped",
    "DppoKl",
    "DppoTv",
    "DrGrpo",
    "EntropyAdvantage",
    "EntropyBonus",
    "EntropyTarget",
    "Erc",
    "ForkTokens",
    "Grpo",
    "Gspo",
    "INTERVENTIONS",
    "InfluenceSteer",
    "Intervention",
    "KlCov",
    "Method",
    "Opo",
    "Qae",
    "Quadrant",
    "Rloo",
    "Steer",
    "Unlikeliness",
    "WReinforce",
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
