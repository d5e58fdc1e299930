"""A wrong setting or a missing input is named, with its value and the way out."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from entropy_lab.errors import ConfigError
from entropy_lab.interventions import INTERVENTIONS, make_method
from entropy_lab.types import TokenStats
from token_examples import EVERY_METHOD, example


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("stear", {}, r"unknown method 'stear': did you mean steer or stare\? Valid: grpo,"),
        ("zzz", {}, r"unknown method 'zzz': Valid: grpo, clip_higher, clip_cov"),
        ("grpo", {"clip_hi": 0.3}, r"grpo has no parameter 'clip_hi': did you mean clip_high"),
        ("entropy_bonus", {}, "entropy_bonus needs beta: it has no published default, set it"),
        ("entropy_bonus", {"beta": math.nan}, "beta = nan is not valid: set a finite number"),
        ("grpo", {"clip_low": -0.1}, r"grpo: clip_low = -0\.1 is not valid: set a number >= 0"),
        ("grpo", {"clip_high": math.nan}, "grpo: clip_high = nan is not valid"),
        ("grpo", {"dual_clip": 1}, "dual_clip = 1 is not valid: set a number > 1"),
        ("grpo", {"clip_high": "0.2"}, "clip_high = '0.2' .* a value of type float, not str"),
        ("grpo", {"clip_high": True}, "clip_high = True .* of type float, not bool"),
        ("grpo", {"normaliser": "mean"}, "normaliser = 'mean' .* set one of token_mean, selected"),
        ("grpo", {"normaliser": "constant"}, "constant_length = None is not valid: set a positive"),
        ("grpo", {"constant_length": 5}, "constant_length = 5 is not valid"),
        ("grpo", {"normaliser": "constant", "constant_length": -5}, "constant_length = -5 is not"),
        ("grpo", {"constant_length": 5.0}, "5.0 .* of type int or nothing, not float"),
        ("clip_cov", {"ratio": 0.0}, r"ratio = 0\.0 is not valid: set a share of the tokens in \("),
        ("clip_cov", {"lb": 5.0}, r"clip_cov: lb = 5\.0 is not valid: set a number below ub = 5"),
        ("clip_cov", {"scope": "batch"}, "scope = 'batch' .* set one of minibatch, microbatch"),
        ("kl_cov", {"k": -1.0}, r"kl_cov: k = -1\.0 is not valid: set a finite number >= 0"),
        ("kl_cov", {"ratio": 1.5}, r"kl_cov: ratio = 1\.5 is not valid"),
        ("kl_cov", {"clip_low": 0.2}, "kl_cov has no parameter 'clip_low'"),
        ("steer", {"lambda_min": 0.0}, r"lambda_min = 0\.0 is not valid: set a weight in \(0, 1\]"),
        ("steer", {"lambda_min": 1.2}, r"steer: lambda_min = 1\.2 is not valid"),
        (
            "steer",
            {"lambda_max": 0.5},
            r"lambda_max = 0\.5 .* a finite weight >= lambda_min = 0\.7",
        ),
        ("steer", {"lambda_max": 1.2}, r"lambda_max = 1\.2 .* or mapping 'linear'"),
        ("steer", {"mapping": "cubic"}, "mapping = 'cubic' .* set one of exp, linear, binary"),
        ("steer", {"omega": "cov"}, "omega = 'cov' .* set one of steer, steer_released"),
        ("steer", {"mapping": "binary"}, r"quantile = None .* a number in \(0, 1\) with mapping"),
        ("steer", {"quantile": 0.5}, r"steer: quantile = 0\.5 is not valid"),
        ("steer", {"symmetric": 1}, "symmetric = 1 .* a value of type bool, not int"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_way_out(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_method(name, **params)


def test_missing_inputs_say_what_to_pass() -> None:
    _, batch, stats = example()
    with pytest.raises(ValueError, match=r"steer\.plan reads entropy, logp but got stats=None"):
        make_method("steer").plan(batch, None)
    with pytest.raises(ValueError, match=r"batch\.old_entropy, which is None"):
        make_method("steer", omega="steer_released").plan(replace(batch, old_entropy=None), stats)
    with pytest.raises(ValueError, match=r"batch\.uid, which is None: pass uid \(B,\)"):
        make_method("clip_cov").plan(replace(batch, uid=None), stats)
    for field in ("reward", "group"):
        with pytest.raises(ValueError, match=rf"reads batch\.{field}, which is None: pass {field}"):
            make_method("grpo").advantages(replace(batch, **{field: None}))


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_registry_names_its_methods_and_their_source(name: str) -> None:
    method = make_method(name, **dict(EVERY_METHOD)[name])
    assert method.name == name and method.source
    allowed = {f.name for f in fields(TokenStats)} | {"old_entropy"}
    assert method.needs <= allowed
    with pytest.raises(FrozenInstanceError):
        method.normaliser = "seq_mean"  # type: ignore[misc]
