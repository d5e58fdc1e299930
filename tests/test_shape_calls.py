"""Right shapes pass every public function of layers 0 and 1; a wrong one is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import TokenShare, policy_loss, token_share
from entropy_lab.predictors import PREDICTORS
from entropy_lab.stats import Moments, kernels
from entropy_lab.types import TokenBatch, TokenPlan
from shapes import (
    fault,
    modules,
    public_functions,
    sees_tensors,
    typed,
)
from step_example import B, P, full_example, gradient, tensor_leaves
from token_examples import EVERY_METHOD


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of `value` with another leaf; a dataclass's own checks are passed by."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    if is_dataclass(value):
        twin = copy.copy(value)
        object.__setattr__(twin, key, changed(getattr(value, key), rest, new))
        return twin
    if isinstance(value, dict):
        return {**value, key: changed(value[key], rest, new)}
    return type(value)(changed(v, rest, new) if i == key else v for i, v in enumerate(value))


def spoilt(x: Tensor) -> dict[str, Tensor]:
    wrong = {"axis": x[None], "dtype": x.long() if x.is_floating_point() else x.float()}
    if x.ndim > 1:
        wrong["swap"] = x.transpose(0, 1)
    return wrong


def arguments() -> dict[str, dict[str, Any]]:
    """Arguments for one call of each public function that takes or returns tensors."""
    logits, batch, stats = full_example()
    method = make_method("clip_cov", ratio=0.1, lb=0.0, ub=3.0)
    [(plan, share)] = plan_step(method, [batch], [stats])
    output, grad = gradient(batch, stats, plan, share)
    moments = Moments.of(logits)
    rows = logits[0].detach()
    state = kernels.fold(None, rows, batch.token_id[0], 0)
    prompt = torch.arange(B * P).view(B, P)
    group = {"reward": batch.reward, "group": batch.group}
    step = {"batch": batch, "stats": stats}
    closed_form = {**step, "grad": grad, "flags": output.flags, "lr": 1e-3}
    signs = {"advantage": batch.advantage, "logp": stats.logp}
    table: dict[str, dict[str, Any]] = {
        "types._Rows.rows": {"self": stats, "index": torch.tensor([4, 0])},
        "types.TokenStats.detach": {"self": stats},
        "loss.token_share": {"batch": batch, "plan": plan},
        "loss.sampler_weight": {
            "old_logp": batch.old_logp,
            "rollout_logp": batch.rollout_logp,
            "mask": batch.mask,
            "level": "token",
            "cap": 2.0,
        },
        "loss.policy_loss": {**step, "plan": plan, "share": share},
        "advantages.group_relative": group,
        "advantages.leave_one_out": group,
        "advantages.length_weighted": {**group, "length": batch.mask.sum(1)},
        "advantages.quantile_relative": {**group, "k": 0.4},
        "advantages.rank_penalised": {**group, "logp": stats.logp[:, 0], "beta": 0.25},
        "advantages.outcome": {"reward": batch.reward},
        "stats.reference.token_stats": {"logits": logits, "token_id": batch.token_id},
        "stats.linear.linear_token_stats": {
            "hidden": logits[..., :5],
            "weight": torch.ones(logits.shape[-1], 5, dtype=logits.dtype),
            "token_id": batch.token_id,
        },
        "stats.kernels.row_moments": {"logits": rows, "token_id": batch.token_id[0]},
        "stats.kernels.fold": {
            "state": state.clone(),
            "z": rows,
            "token_id": batch.token_id[0],
            "first": 0,
        },
        "stats.kernels.logit_grad": {
            "logits": rows,
            "token_id": batch.token_id[0],
            "known": state[:5],
            "temperature": 1.0,
            "out": rows.clone(),
        },
        "stats.moments.Moments.of": {"z": logits, "at_least": logits[..., 0]},
        "stats.moments.Moments.merge": {"self": moments, "other": moments},
        "stats.moments.Moments.stats": {"self": moments, "z_a": logits[..., 0]},
        "stats.derived.entropy_slopes": {"stats": stats},
        "stats.derived.quadrant": {**signs, "entropy": stats.entropy},
        "stats.quantile.quantile": {"x": stats.logp[0], "q": 0.4},
        "stats.state.mix64": {"x": batch.state},
        "stats.state.state_hash": {
            "prompt_id": prompt,
            "prompt_mask": prompt > 0,
            "token_id": batch.token_id,
        },
        "stats.visitation.response_terms": {
            "mask": batch.mask,
            "entropy": stats.entropy,
            "dH": stats.entropy,
            "dlogp": stats.logp,
            "group": batch.group,
            "log_ratio": batch.reward,
            "weight": batch.reward,
        },
        "interventions.base.plan_step": {"method": method, "batches": [batch], "stats": [stats]},
        "interventions.control.valid_mean": {"values": stats.logp, "mask": batch.mask},
        "interventions.control.valid_std": {"values": stats.logp, "mask": batch.mask},
        "interventions.selection.token_hash": {"batch": batch},
        "interventions.selection.choose": {
            "batch": batch,
            "candidates": batch.mask,
            "count": 3,
            "score": stats.logp,
        },
        "interventions.selection.share_count": {"ratio": 0.5, "mask": batch.mask},
        "interventions.influence_steer.measured_influence": {"name": "x", "batch": batch},
        "predictors.cov.score_cov": {**signs, "mask": batch.mask},
        "predictors.steer.steer_omega": {**step, "clipped": ~batch.mask},
        "predictors.steer_released.steer_released_omega": step,
        **{f"predictors.{name}.{name}": closed_form for name in PREDICTORS},
    }
    for name, params in EVERY_METHOD:
        own = {"self": make_method(name, **params), "batch": batch}
        hook = {"stats": stats, "state": own["self"].initial_state()}
        calls = {"advantages": {}, "plan": {"stats": stats}}
        for key, extra in {**calls, "begin_rollout": hook, "end_step": hook}.items():
            fn = getattr(type(own["self"]), key)
            table[f"{fn.__module__.removeprefix('entropy_lab.')}.{fn.__qualname__}"] = own | extra
    return table


FUNCTIONS = {
    name: fn
    for module in modules()
    for name, fn in public_functions(module)
    # The protocol's own methods have no body.
    if sees_tensors(fn) and "Intervention." not in name
}

# What an annotation cannot refuse, because nothing else in the call binds those axes.
FREE = {
    "stats.state.mix64": {("x", "axis"), ("x", "swap")},
    "interventions.selection.share_count": {("mask", "swap")},
}


def test_every_public_function_that_sees_tensors_is_called_below():
    assert set(arguments()) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_with_the_right_shapes_is_accepted(name: str):
    typed(FUNCTIONS[name])(**arguments()[name])


class Reached(Exception):
    pass


def unreached(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Stands for `fn`, with its annotations; only reports that the arguments were accepted."""

    @wraps(fn)
    def reached(*args: Any, **kwargs: Any) -> Any:
        raise Reached

    return reached


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_argument_is_refused_before_the_function_sees_it(name: str):
    call, given = typed(unreached(FUNCTIONS[name])), arguments()[name]
    checked = {key: value for key, value in given.items() if key != "self"}
    accepted = set()
    for path, leaf in tensor_leaves(checked):
        for kind, wrong in spoilt(leaf).items():
            try:
                call(**{**given, **changed(checked, path, wrong)})
            except TypeCheckError as error:
                assert "checking the parameters of" in str(error)
            except Reached:
                accepted.add((".".join(map(str, path)), kind))
    assert accepted == FREE.get(name, set())


# `rows` returns Self, which says no shape.
@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"types._Rows.rows"}))
def test_a_wrong_result_is_refused(name: str):
    fn, given = FUNCTIONS[name], arguments()[name]
    for path, leaf in tensor_leaves(fn(**given)):
        for wrong in spoilt(leaf).values():
            spoil = partial(changed, path=path, new=wrong)
            with pytest.raises(TypeCheckError, match="checking the return value"):
                typed(fn, spoil)(**given)


def test_a_batch_that_is_right_in_itself_must_fit_the_statistics():
    _, batch, stats = full_example()
    turned = TokenBatch(batch.token_id.T, batch.mask.T, batch.advantage.T, batch.old_logp.T)
    share = token_share(turned, TokenPlan())
    with jaxtyped("context"):
        assert fault(turned, TokenBatch) is None and fault(share, TokenShare) is None
    with pytest.raises(TypeCheckError, match="checking the parameters of entropy_lab.loss"):
        typed(policy_loss)(stats, turned, TokenPlan(), share)
