"""Wrong settings of the methods with a memory, and of bapo, are named with the way out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from entropy_lab.errors import ConfigError
from entropy_lab.interventions import make_method

TOTAL = {"total_steps": 10}


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("adaptive_entropy", {"variant": "verl"}, "variant = 'verl' .* set one of skywork, trl"),
        ("adaptive_entropy", {"target": 0.0}, r"target = 0\.0 is not valid: set an entropy > 0"),
        ("adaptive_entropy", {"delta": -1e-4}, "delta = -0.0001 is not valid: set a finite step"),
        ("adaptive_entropy", {"beta_max": -1.0}, r"beta_max = -1\.0 .* >= beta_min = 0\.0"),
        ("adaptive_entropy", {"start": 0.5}, r"start = 0\.5 .* \[beta_min, beta_max\] = \[0\.0, 0"),
        (
            "entropy_disc_batch",
            {"mu": -1.0},
            r"mu = -1\.0 is not valid: set a number of deviations",
        ),
        ("entropy_disc_batch", {"scope": "step"}, "'step' .* set one of rollout, minibatch, micro"),
        ("entropy_disc_vocab", {"mu": math.nan}, "entropy_disc_vocab: mu = nan is not valid"),
        ("entropy_disc_vocab", {"max_share": 0.0}, r"max_share = 0\.0 .* set a share in \(0, 1\]"),
        ("stare", {"variant": "c2"}, "variant = 'c2' .* set one of O1, C2"),
        ("stare", {"weight_up": 0.9}, r"weight_up = 0\.9 is not valid: set a finite weight >= 1"),
        ("stare", {"weight_down": 1.1}, r"weight_down = 1\.1 .* set a weight in \[0, 1\]"),
        ("stare", {"top": 0.0}, r"stare: top = 0\.0 is not valid: set a share of the tokens"),
        ("stare", {"gate": 0.0}, r"gate = 0\.0 is not valid: set an entropy > 0 in nats"),
        ("stare", {"scope": "rollout"}, "scope = 'rollout' .* set one of minibatch, microbatch"),
        ("entropy_pi", {"target": -0.1}, r"target = -0\.1 is not valid: set an entropy >= 0"),
        ("entropy_pi", {"k_i": -0.1}, r"entropy_pi: k_i = -0\.1 is not valid: set a finite gain"),
        ("entropy_pi", {"probability": 1.0}, r"probability = 1\.0 .* set a number in \(0, 1\)"),
        ("entropy_pi", {"mean": "some"}, "mean = 'some' .* set one of all, high"),
        ("entrocraft", {}, "entrocraft needs total_steps: it has no published default, set it"),
        ("entrocraft", {"total_steps": 0}, "total_steps = 0 is not valid: set the optimizer steps"),
        ("entrocraft", TOTAL | {"high_start": 0.5}, r"high_start = 0\.5 .* >= low_start = 0\.6"),
        ("entrocraft", TOTAL | {"low_end": 0.6}, r"high_end = 0\.5 .* >= low_end = 0\.6"),
        ("pos_adv_reweight", {"threshold": -1.0}, r"threshold = -1\.0 .* set an entropy > 0"),
        ("pos_adv_reweight", {"delta": 0.0}, r"delta = 0\.0 is not valid: set a step in \(0, 1\]"),
        (
            "pos_adv_reweight",
            {"start": 2.0},
            r"start = 2\.0 is not valid: set a weight in \[0, 1\]",
        ),
        ("repo_r", {"zeta_min": 0.0}, r"zeta_min = 0\.0 is not valid: set a number > 0"),
        ("repo_r", {"zeta_max": 1e-5}, "zeta_max = 1e-05 .* >= zeta_min = 0.0001"),
        ("repo_r", {"zeta": 0.1}, r"zeta = 0\.1 is not valid: set a number of size 0\.0001 to 0"),
        ("repo_r", {"target": 0.0}, r"repo_r: target = 0\.0 is not valid: set an entropy > 0"),
        ("repo_r", {"logp_floor": 0.0}, r"logp_floor = 0\.0 .* set a log-probability below 0"),
        ("bapo", {"low_start": 1.1}, r"low_start = 1\.1 is not valid: set a ratio in \[0, 1\]"),
        ("bapo", {"low_max": 0.5}, r"low_max = 0\.5 .* set a ratio from low_start = 0\.6 to 1"),
        ("bapo", {"high_start": 0.9}, r"high_start = 0\.9 is not valid: set a ratio >= 1"),
        ("bapo", {"high_max": 1.1}, r"high_max = 1\.1 .* a finite ratio >= high_start = 1\.2"),
        ("bapo", {"low_step": 0.0}, r"bapo: low_step = 0\.0 is not valid: set a step > 0"),
        ("bapo", {"balance": -1.0}, r"balance = -1\.0 is not valid: set a finite number >= 0"),
        ("bapo", {"dual_clip": 1.0}, r"bapo: dual_clip = 1\.0 is not valid: set a number > 1"),
        ("bapo", {"first": "both"}, "first = 'both' .* set one of low, high"),
        ("bapo", {"clip_low": 0.2}, "bapo has no parameter 'clip_low'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_way_out(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_method(name, **params)
