"""A wrong setting or a missing input is named, with its value and the way out."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from entropy_lab.errors import ConfigError
from entropy_lab.interventions import INTERVENTIONS, make_method
from entropy_lab.types import TokenStats
from token_examples import REQUIRED, example


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("stear", {}, r"unknown method 'stear': did you mean steer or stare or erc\? Valid: grpo,"),
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
        ("clip_lower", {}, "clip_lower needs clip_low: it has no published default, set it"),
        ("clip_lower", {"clip_low": -0.1}, r"clip_lower: clip_low = -0\.1 .* set a number >= 0"),
        ("fork_tokens", {"rho": 0.0}, r"rho = 0\.0 is not valid: set a share of the tokens in \(0"),
        ("fork_tokens", {"rho": 1.5}, r"fork_tokens: rho = 1\.5 is not valid"),
        ("fork_tokens", {"scope": "batch"}, "scope = 'batch' .* set one of minibatch, microbatch"),
        ("w_reinforce", {"polarity": "psr"}, "'psr' .* set one of both, positive, negative"),
        ("w_reinforce", {"lambda_positive": -1}, "lambda_positive = -1 .* a finite weight >= 0"),
        (
            "w_reinforce",
            {"polarity": "negative", "normaliser": "token_mean"},
            "normaliser = 'token_mean' .* selected_mean: dropped responses leave the denominator",
        ),
        ("entropy_advantage", {"alpha": -0.1}, r"alpha = -0\.1 .* set a finite number >= 0"),
        ("entropy_advantage", {"kappa": 1.0}, r"kappa = 1\.0 .* so that no advantage changes its"),
        ("unlikeliness", {"beta": 1.1}, r"unlikeliness: beta = 1\.1 .* a number in \[0, 1\]"),
        ("dr_grpo", {}, "dr_grpo needs constant_length: it has no published default, set it"),
        ("dr_grpo", {"constant_length": 0}, "constant_length = 0 .* a positive number of tokens"),
        (
            "dr_grpo",
            {"constant_length": 9, "normaliser": "token_mean"},
            "dr_grpo: normaliser = 'token_mean' is not valid: set constant, or method rloo",
        ),
        ("qae", {"k": 1.0}, r"qae: k = 1\.0 is not valid: set a number in \(0, 1\)"),
        ("ce_gppo", {"beta1": -0.5}, r"beta1 = -0\.5 .* \(0: no gradient beyond the clip\)"),
        ("ce_gppo", {"beta2": math.inf}, "ce_gppo: beta2 = inf is not valid: set a finite number"),
        ("cispo", {"dual_clip": 3.0}, r"dual_clip = 3\.0 .* set inf: clip_high already bounds"),
        ("erc", {"entropy_low": 0.0}, r"entropy_low = 0\.0 is not valid: set a number > 0"),
        ("erc", {"entropy_high": math.nan}, "erc: entropy_high = nan is not valid"),
        ("dppo_tv", {"delta": -0.1}, r"dppo_tv: delta = -0\.1 .* a number >= 0 \(inf: drop none\)"),
        ("dppo_kl", {"c": 0.5}, r"dppo_kl: c = 0\.5 .* a number >= 1 \(inf: no bound on the"),
        ("dppo_kl", {"clip_low": 0.2}, "dppo_kl has no parameter 'clip_low'"),
        ("quadrant", {"neg_likely": -1.0}, r"neg_likely = -1\.0 .* a finite weight >= 0"),
        ("quadrant", {"pos_likely": math.inf}, "quadrant: pos_likely = inf is not valid"),
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
    with pytest.raises(ValueError, match=r"erc reads batch\.old_entropy, which is None: pass the"):
        make_method("erc").plan(replace(batch, old_entropy=None), stats)
    for name in ("fork_tokens", "entropy_advantage", "quadrant", "dppo_tv"):
        with pytest.raises(ValueError, match=rf"{name}\.plan reads .* but got stats=None"):
            make_method(name).plan(batch, None)
    for name in ("unlikeliness", "opo", "dr_grpo", "rloo", "qae", "w_reinforce"):
        with pytest.raises(ValueError, match=rf"{name}\.advantages reads batch\.reward, which is"):
            make_method(name, **REQUIRED.get(name, {})).advantages(replace(batch, reward=None))
    for field in ("reward", "group"):
        with pytest.raises(ValueError, match=rf"reads batch\.{field}, which is None: pass {field}"):
            make_method("grpo").advantages(replace(batch, **{field: None}))


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_registry_names_its_methods_and_their_source(name: str) -> None:
    method = make_method(name, **REQUIRED.get(name, {}))
    assert method.name == name and method.source
    allowed = {f.name for f in fields(TokenStats)} | {"old_entropy", "influence_marginal"}
    assert method.needs <= allowed
    with pytest.raises(FrozenInstanceError):
        method.normaliser = "seq_mean"  # type: ignore[misc]
