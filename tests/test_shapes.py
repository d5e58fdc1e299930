"""The shapes written on the dataclasses and public functions of layers 0 and 1 are true."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import LossOutput, TokenShare, policy_loss, token_share
from entropy_lab.predictors import PREDICTORS
from entropy_lab.stats import Moments, kernels, state_hash
from entropy_lab.types import TokenBatch, TokenGrad, TokenPlan, TokenStats
from shapes import (
    fault,
    hints,
    is_array,
    modules,
    parts,
    public_functions,
    sees_tensors,
    shapeless,
    typed,
)
from token_examples import EVERY_METHOD, example

RECORDS = (TokenBatch, TokenStats, TokenGrad, TokenPlan, TokenShare, LossOutput)
B, T, P = 6, 8, 3


@pytest.mark.parametrize("module", list(modules()), ids=lambda m: m.__name__)
def test_every_public_tensor_has_a_shape(module: ModuleType):
    assert shapeless(module) == []


PLANTED = {
    "argument": ("def f(x: Tensor) -> int: ...", "f: x is a Tensor without a shape"),
    "return": ("def f(x: int) -> Tensor | None: ...", "f: return is a Tensor without a shape"),
    "inside": ("def f() -> list[tuple[Tensor, int]]: ...", "f: return is a Tensor without"),
    "no hint": ("def f(x) -> int: ...", "f: x has no annotation"),
    "no return": ("def f(x: int): ...", "f: return has no annotation"),
    "method": ("class M:\n    def f(self, x: Tensor) -> int: ...", "M.f: x is a Tensor without"),
    "classmethod": (
        "class M:\n    @classmethod\n    def f(cls) -> Tensor: ...",
        "M.f: return is a Tensor without",
    ),
    "field": ("@dataclass\nclass D:\n    x: Tensor | float = 0.0", "D.x is a Tensor without"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_tensor_without_a_shape_is_found(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, message = PLANTED[case]
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    name = f"planted_{case.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(f"{head}from torch import Tensor\n{source}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = shapeless(importlib.import_module(name))
    assert len(found) == 1 and message in found[0], found


# --- one binding of B and T for everything that belongs to one step --------------------------


def full_example() -> tuple[Tensor, TokenBatch, TokenStats]:
    """`example` with every optional field of the batch present."""
    logits, batch, stats = example(rows=B, length=T)
    prompt = torch.arange(B * P).view(B, P)
    batch = replace(
        batch,
        rollout_logp=batch.old_logp + 0.01,
        state=state_hash(prompt, prompt > 0, batch.token_id),
        truncated=batch.mask.all(1),
        rollout_weight=batch.old_logp.exp(),
    )
    return logits, batch, stats


def gradient(
    batch: TokenBatch, stats: TokenStats, plan: TokenPlan, share: TokenShare
) -> tuple[LossOutput, TokenGrad]:
    """The loss of one micro-batch and its gradient at logp and entropy, as the probe reads it."""
    known = replace(
        stats,
        logp=stats.logp.detach().requires_grad_(),
        entropy=stats.entropy.detach().requires_grad_(),
    )
    output = policy_loss(known, batch, plan, share)
    leaves = (known.logp, known.entropy)
    at = torch.autograd.grad(output.loss, leaves, allow_unused=True, materialize_grads=True)
    return output, TokenGrad(-at[0], -at[1])


def step_records(name: str, params: dict[str, Any]) -> list[list[Any]]:
    """Everything made for each of two micro-batches, of 4 and 2 rows, by one optimizer step."""
    _, batch, stats = full_example()
    method = make_method(name, **params)
    cuts = [slice(0, 4), slice(4, B)]
    batches, known = [batch.rows(c) for c in cuts], [stats.rows(c) for c in cuts]
    made = []
    for part, now, (plan, share) in zip(
        batches, known, plan_step(method, batches, known), strict=True
    ):
        output, grad = gradient(part, now, plan, share)
        made.append([part, now, plan, share, output, grad])
    return made


def bound(axes: str) -> Any:
    """The size that the present context has bound to an axis (None where it has not)."""
    return next((n for n in range(100) if isinstance(torch.zeros(n), Float[Tensor, axes])), None)


@pytest.mark.parametrize(("name", "params"), EVERY_METHOD)
def test_one_binding_of_b_and_t_holds_for_a_whole_step(name: str, params: dict[str, Any]):
    for rows, records in zip((4, B - 4), step_records(name, params), strict=True):
        assert tuple(map(type, records)) == (
            TokenBatch, TokenStats, TokenPlan, TokenShare, LossOutput, TokenGrad
        )  # fmt: skip
        batch, stats, *_, output, grad = records
        with jaxtyped("context"):
            assert [fault(r, type(r), type(r).__name__) for r in records] == [None] * 6
            for predict in PREDICTORS.values():
                result = predict(batch, stats, grad, output.flags, 1e-3)
                assert fault(result, hints(predict)["return"], predict.__name__) is None
            assert (bound("B"), bound("T")) == (rows, T)


def test_the_steps_above_show_every_tensor_field_as_a_tensor():
    made = [r for n, p in EVERY_METHOD for part in step_records(n, p) for r in part]
    seen = {f"{type(r).__name__}.{n}" for r in made for (n, *_), _ in tensor_leaves(r)}
    annotated = {
        f"{record.__name__}.{name}"
        for record in RECORDS
        for name, hint in hints(record).items()
        if any(map(is_array, parts(hint)))
    }
    # Fields that no method of ours sets per token; the test below fills them.
    spare = {"clip_low", "clip_high", "beyond_low", "beyond_high", "dual_clip", "entropy_coef"}
    assert annotated - seen == {f"TokenPlan.{name}" for name in spare}


@pytest.mark.parametrize("shape", [(), (B, T)])
def test_every_coefficient_of_a_plan_may_be_a_tensor(shape: tuple[int, ...]):
    _, batch, stats = full_example()
    for f in fields(TokenPlan):
        if f.type != "PerToken":
            continue
        plan = TokenPlan(**{f.name: torch.full(shape, 2.0)})
        with jaxtyped("context"):
            assert fault(batch, TokenBatch) is None and fault(plan, TokenPlan) is None
        assert policy_loss(stats, batch, plan).loss.isfinite()
        wrong = TokenPlan(**{f.name: torch.full((T, B), 2.0)})
        with jaxtyped("context"):
            assert fault(batch, TokenBatch) is None
            assert f"plan.{f.name} is torch.float32[8, 6]" in str(fault(wrong, TokenPlan, "plan"))


# --- calls: right shapes pass, wrong ones are refused by the annotation -----------------------


def tensor_leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, tensor) of every tensor within dataclasses, lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield path, value
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensor_leaves(getattr(value, f.name), (*path, f.name))
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from tensor_leaves(item, (*path, key))


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
