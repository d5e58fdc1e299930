"""A method's memory: what the hooks promise, whichever method it is."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from entropy_lab.interventions import make_method, plan_step
from entropy_lab.types import TokenBatch, TokenStats
from token_examples import EVERY_METHOD, assert_same_plan, example, golden_batch, loss_and_grad


def steps(count: int = 3):
    """Rollouts of two minibatches each, whose entropy falls from one to the next."""
    for number in range(count):
        _, batch, stats = example(seed=number, rows=8)
        stats = replace(stats, entropy=stats.entropy * 0.5**number)
        batch = replace(batch, old_entropy=stats.entropy)
        halves = [slice(0, 4), slice(4, 8)]
        yield batch, stats, [(batch.rows(part), stats.rows(part)) for part in halves]


def run(name: str, params: dict[str, Any], known: Any = lambda stats: stats):
    """Every state and plan of a short run, and each state as JSON when it was made."""
    method = make_method(name, **params)
    state = method.initial_state()
    states, plans = [(state, json.dumps(state))], []
    for whole, stats, minibatches in steps():
        state = method.begin_rollout(whole, known(stats), state)
        states.append((state, json.dumps(state)))
        for batch, before in minibatches:
            plans.append(method.plan(batch, known(before), state))
            state = method.end_step(batch, known(before), state)
            states.append((state, json.dumps(state)))
    return states, plans


@pytest.mark.parametrize(("name", "params"), EVERY_METHOD)
def test_a_state_is_flat_json_and_never_mutated(name: str, params: dict[str, Any]) -> None:
    states, _ = run(name, params)
    for state, written in states:
        assert json.dumps(state) == written, "a hook changed a state that it was given"
        assert json.loads(written) == state
        assert all(type(key) is str and type(value) is float for key, value in state.items())


@pytest.mark.parametrize(("name", "params"), EVERY_METHOD)
def test_needs_names_all_that_any_hook_reads(name: str, params: dict[str, Any]) -> None:
    needs = make_method(name, **params).needs
    others = [f.name for f in fields(TokenStats) if f.name not in needs]

    def spoilt(stats: TokenStats) -> TokenStats | None:
        if not needs:
            return None
        nothing = torch.full_like(stats.logp, float("nan"))
        return replace(stats, **{name: nothing for name in others})

    states, plans = run(name, params)
    poor_states, poor_plans = run(name, params, spoilt)
    assert [s for s, _ in poor_states] == [s for s, _ in states]
    for poor, plan in zip(poor_plans, plans, strict=True):
        assert_same_plan(poor, plan)


CONTROLLERS = ["adaptive_entropy", "entropy_pi", "entrocraft", "pos_adv_reweight", "repo_r",
               "stare", "entropy_disc_vocab"]  # fmt: skip


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_hook_that_reads_statistics_says_so(name: str) -> None:
    params = {"variant": "trl"} if name == "adaptive_entropy" else dict(EVERY_METHOD)[name]
    method = make_method(name, **params)
    _, batch, _ = example()
    hook = "end_step" if name in ("adaptive_entropy", "pos_adv_reweight") else "begin_rollout"
    hook = "end_step" if name == "entropy_pi" else hook
    with pytest.raises(ValueError, match=rf"{name}\.{hook} reads .*entropy.* but got stats=None"):
        getattr(method, hook)(batch, None, method.initial_state())


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("entropy_disc_batch", "disc_mean"),
        ("entropy_disc_vocab", "disc_std"),
        ("stare", "entropy"),
        ("entrocraft", "direction"),
    ],
)
def test_a_state_without_its_rollout_is_named(name: str, key: str) -> None:
    _, batch, stats = example()
    method = make_method(name, **dict(EVERY_METHOD)[name])
    message = rf"{name}\.plan reads state\['{key}'\], but the state holds nothing: pass what begin"
    with pytest.raises(ValueError, match=message):
        method.plan(batch, stats, {})


@pytest.mark.parametrize(("name", "params"), EVERY_METHOD)
def test_without_a_state_the_batch_is_its_own_first_rollout(
    name: str, params: dict[str, Any]
) -> None:
    _, batch, stats = example()
    method = make_method(name, **params)
    state = method.begin_rollout(batch, stats, method.initial_state())
    assert_same_plan(method.plan(batch, stats), method.plan(batch, stats, state))


@pytest.mark.parametrize("scope", ["minibatch", "microbatch"])
def test_plan_step_hands_the_state_on(scope: str) -> None:
    _, batch, stats = example(rows=8)
    method = make_method("entropy_pi", probability=0.2, scope=scope, k_p=0.0)
    cuts = [slice(0, 4), slice(4, 8)]
    parts = [batch.rows(c) for c in cuts], [stats.rows(c) for c in cuts]
    for integral in (10.0, 20.0):
        for plan, _ in plan_step(method, *parts, {"integral": integral}):
            assert plan.scalars == {"alpha": pytest.approx(integral / 100)}
    assert all((p.scalars or {})["alpha"] == 0.0 for p, _ in plan_step(method, *parts))


def test_thresholds_of_a_rollout_hold_for_every_split_of_its_steps() -> None:
    for name in ("entropy_disc_batch", "entropy_disc_vocab"):
        method = make_method(name, **dict(EVERY_METHOD)[name])
        for whole, stats, minibatches in steps():
            state = method.begin_rollout(whole, stats, {})
            at_once = method.plan(whole, stats, state).selected
            batches = [b for b, _ in minibatches]
            parts = [method.plan(b, s, state).selected for b, s in minibatches]
            assert at_once is not None
            assert torch.equal(torch.cat(parts), at_once)  # type: ignore[arg-type]
            assert TokenBatch.cat(batches).mask.equal(whole.mask)


@pytest.mark.parametrize(
    ("name", "params", "state", "base"),
    [
        ("adaptive_entropy", {}, {"beta": 0.1, "active": 0.0}, "grpo"),
        ("entropy_disc_batch", {"mu": 1e6}, None, "grpo"),
        ("entropy_disc_vocab", {"mu": 1e6}, None, "grpo"),
        ("stare", {}, {"entropy": 0.3}, "clip_higher"),
        ("entropy_pi", {"k_p": 0.0}, {"integral": 0.0}, "grpo"),
        ("entrocraft", {"total_steps": 9}, {"direction": 0.0}, "grpo"),
        ("pos_adv_reweight", {}, {"lambda": 1.0}, "grpo"),
        ("repo_r", {}, {"zeta": 0.0}, "grpo"),
        ("bapo", {"low_start": 0.8, "high_max": 1.2, "dual_clip": 10.0}, None, "grpo"),
        ("bapo", {"low_start": 0.8, "high_max": 1.2}, None, "dual_clip3"),
    ],
)
def test_at_rest_a_method_is_the_published_loss_that_it_builds_on(
    name: str, params: dict[str, Any], state: dict[str, float] | None, base: str
) -> None:
    golden, batch, stats = golden_batch()
    plan = make_method(name, **params).plan(batch, stats, state)
    loss, grad = loss_and_grad(batch, stats, plan)
    assert loss == pytest.approx(float(golden[f"{base}_loss"]), abs=1e-9)
    np.testing.assert_allclose(grad.numpy(), golden[f"{base}_grad"], rtol=0, atol=1e-9)
