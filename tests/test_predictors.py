"""The closed forms against golden finite differences, numpy loops and real tabular updates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import policy_loss
from entropy_lab.predictors import PREDICTORS
from entropy_lab.stats import token_stats
from entropy_lab.types import (
    CLIPPED_HIGH,
    CLIPPED_LOW,
    DUAL_CLIPPED,
    TokenBatch,
    TokenGrad,
    TokenStats,
)
from golden import load_golden


def entropy_of(logits: Tensor) -> Tensor:
    log_pi = torch.log_softmax(logits, dim=-1)
    return -(log_pi.exp() * log_pi).sum(-1)


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest error over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def example(seed: int = 0) -> tuple[Tensor, TokenBatch, TokenStats, TokenGrad, Tensor]:
    """Logits (4, 5, 7) with ragged responses, repeated states, every flag, and NaN in padding."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=(4, 5, 7)) * 1.5)
    token = torch.tensor(rng.integers(0, 7, (4, 5)))
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 4, 1])[:, None]
    stats = token_stats(logits, token)
    stats = stats.map(lambda x: x.masked_fill(~mask, float("nan")))
    batch = TokenBatch(
        token_id=token,
        mask=mask,
        advantage=torch.tensor(rng.normal(size=(4, 5))),
        old_logp=(stats.logp + torch.tensor(rng.normal(size=(4, 5)) * 0.3)),
        old_entropy=torch.tensor(rng.uniform(0.5, 1.9, (4, 5))),
        state=torch.tensor(rng.integers(0, 4, (4, 5))),
    )
    grad = TokenGrad(
        grad_logp=torch.tensor(rng.normal(size=(4, 5))),
        grad_entropy=torch.tensor(rng.normal(size=(4, 5))),
    )
    choices = [0, 0, 0, 0, CLIPPED_HIGH, CLIPPED_LOW, DUAL_CLIPPED]
    flags = torch.tensor(rng.choice(choices, (4, 5)), dtype=torch.uint8)
    return logits, batch, stats, grad, flags


def by_loop(
    name: str, logits: Tensor, batch: TokenBatch, grad: TokenGrad, flags: Tensor, lr: float
) -> np.ndarray:
    """The predictor written out position by position from the full distribution."""
    z, out = logits.numpy(), np.zeros(batch.mask.shape)
    rows = [(i, t) for i in range(z.shape[0]) for t in range(z.shape[1]) if batch.mask[i, t]]
    adv = batch.advantage.numpy()
    pi = np.exp(z - z.max(-1, keepdims=True))
    pi = pi / pi.sum(-1, keepdims=True)
    logp = {(i, t): np.log(pi[i, t, batch.token_id[i, t]]) for i, t in rows}
    mean_adv = np.mean([adv[r] for r in rows])
    mean_logp = np.mean([logp[r] for r in rows])
    for i, t in rows:
        p, c, e = pi[i, t], float(grad.grad_logp[i, t]), float(grad.grad_entropy[i, t])
        h = -np.sum(p * np.log(p))
        s = p * (np.log(p) + h)
        a, lp = int(batch.token_id[i, t]), logp[i, t]
        old = np.exp(float(batch.old_logp[i, t]))
        stopped = int(flags[i, t]) in (CLIPPED_HIGH, CLIPPED_LOW)
        h_old = float(batch.old_entropy[i, t]) if batch.old_entropy is not None else np.nan
        own = -c * (s[a] - np.sum(p * s)) + e * np.sum(s**2)
        out[i, t] = (
            lr
            * {
                "cov": -(adv[i, t] - mean_adv) * (lp - mean_logp) / len(rows),
                "steer": 0.0
                if stopped
                else -p[a] / old * adv[i, t] * p[a] * (1 - p[a]) * (lp + h) / len(rows),
                "steer_released": -adv[i, t] / old * p[a] * (1 - p[a]) * (lp + h_old) / len(rows),
                "discriminant": -c * s[a],
                "softmax": own,
                "softmax_state": own,
            }[name]
        )
    if name == "softmax_state" and batch.state is not None:
        state, alone = batch.state.numpy(), out.copy()
        for i, t in rows:
            out[i, t] = sum(alone[r] for r in rows if state[r] == state[i, t])
    return out


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_equals_a_loop_over_positions(name: str) -> None:
    logits, batch, stats, grad, flags = example()
    found = PREDICTORS[name](batch, stats, grad, flags, 0.3)
    expected = by_loop(name, logits, batch, grad, flags, 0.3)
    assert found.shape == batch.mask.shape and found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert (found[~batch.mask] == 0).all()
    assert (found[batch.mask] != 0).sum() > 5


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_is_linear_in_lr_and_keeps_the_dtype(name: str) -> None:
    _, batch, stats, grad, flags = example()
    narrow = [
        x.map(lambda v: v.float() if v.dtype == torch.float64 else v) for x in (batch, stats, grad)
    ]
    found = PREDICTORS[name](*narrow, flags, 1e-6)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    expected = PREDICTORS[name](batch, stats, grad, flags, 1.0) * 1e-6
    assert worst(found.double(), expected) < 1e-5
    assert (PREDICTORS[name](batch, stats, grad, flags, 0.0) == 0).all()


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_follows_its_rows_into_any_order(name: str) -> None:
    _, batch, stats, grad, flags = example()
    order = torch.tensor([2, 0, 3, 1])
    moved = PREDICTORS[name](
        batch.rows(order), stats.rows(order), grad.rows(order), flags[order], 0.3
    )
    kept = PREDICTORS[name](batch, stats, grad, flags, 0.3)[order]
    torch.testing.assert_close(moved, kept, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("key", "c", "e"), [("dH_unit_ascent_fd", 1.0, 0.0), ("dH_unit_entropy_ascent_fd", 0.0, 1.0)]
)
def test_softmax_equals_golden_finite_differences(key: str, c: float, e: float) -> None:
    golden = load_golden()
    logits, token = torch.tensor(golden["z"]), torch.tensor(golden["action"])
    stats = token_stats(logits, token)
    every = torch.ones_like(token, dtype=torch.bool)
    batch = TokenBatch(token_id=token, mask=every, advantage=stats.logp, old_logp=stats.logp)
    grad = TokenGrad(
        grad_logp=torch.full_like(stats.logp, c), grad_entropy=torch.full_like(stats.logp, e)
    )
    flags = torch.zeros_like(token, dtype=torch.uint8)
    found = PREDICTORS["softmax"](batch, stats, grad, flags, 1.0)
    assert worst(found, torch.tensor(golden[key])) < 1e-6


def test_cov_is_the_opposite_of_the_golden_score_over_n() -> None:
    golden = load_golden()
    token, mask = torch.tensor(golden["action"]), torch.tensor(golden["mask"]) > 0
    stats = token_stats(torch.tensor(golden["z"]), token)
    batch = TokenBatch(
        token_id=token,
        mask=mask,
        advantage=torch.tensor(golden["advantage"]),
        old_logp=torch.tensor(golden["logp_old"]),
    )
    zero = torch.zeros_like(stats.logp)
    found = PREDICTORS["cov"](batch, stats, TokenGrad(zero, zero), zero.to(torch.uint8), 2.0)
    expected = -2.0 * torch.tensor(golden["score_cov"]) / mask.sum()
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-9, atol=1e-12)


def test_softmax_error_falls_tenfold_with_the_step() -> None:
    logits, batch, _, grad, flags = example(3)
    stats = token_stats(logits, batch.token_id)
    pi = torch.softmax(logits, -1)
    sampled = torch.nn.functional.one_hot(batch.token_id, 7) - pi
    slope = -pi * (pi.log() + stats.entropy[..., None])  # dH/dz
    ascent = grad.grad_logp[..., None] * sampled + grad.grad_entropy[..., None] * slope
    errors = []
    for lr in (1e-2, 1e-3, 1e-4):
        actual = entropy_of(logits + lr * ascent) - entropy_of(logits)
        found = PREDICTORS["softmax"](batch, stats, grad, flags, lr)
        errors.append(worst(found[batch.mask], actual[batch.mask]))
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


def tabular_step(lr: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """dH of one SGD step on a table of logits under an entropy-bonus loss, and its predictions."""
    rng = np.random.default_rng(5)
    table = torch.tensor(rng.normal(size=(6, 9)) * 1.2, requires_grad=True)
    state = torch.tensor(rng.integers(0, 6, (8, 7)))
    token = torch.tensor(rng.integers(0, 9, (8, 7)))
    mask = torch.arange(7)[None] < torch.tensor(rng.integers(3, 8, 8))[:, None]
    stats = token_stats(table[state], token)
    batch = TokenBatch(
        token_id=token,
        mask=mask,
        advantage=torch.tensor(rng.normal(size=(8, 1))) * mask,
        old_logp=stats.logp.detach() + torch.tensor(rng.normal(size=(8, 7)) * 0.2),
        state=state,
    )
    stats.logp.retain_grad()
    stats.entropy.retain_grad()
    ((plan, share),) = plan_step(make_method("entropy_bonus", beta=0.3), [batch], None)
    output = policy_loss(stats, batch, plan, share)
    output.loss.backward()
    assert stats.logp.grad is not None and stats.entropy.grad is not None
    grad = TokenGrad(-stats.logp.grad, -stats.entropy.grad)
    with torch.no_grad():
        after = entropy_of((table - lr * table.grad)[state])
        actual = after - entropy_of(table[state])
    names = ("softmax", "softmax_state")
    found = {n: PREDICTORS[n](batch, stats, grad, output.flags, lr) for n in names}
    return actual[mask], {n: v[mask] for n, v in found.items()}, mask


def test_softmax_state_is_exact_first_order_for_a_tabular_policy() -> None:
    errors = []
    for lr in (1e-1, 1e-2, 1e-3):
        actual, found, _ = tabular_step(lr)
        errors.append(worst(found["softmax_state"], actual))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)
    forward, found, _ = tabular_step(1e-4)
    backward, _, _ = tabular_step(-1e-4)
    assert worst(found["softmax_state"], (forward - backward) / 2) < 1e-8
    # One row alone misses what the other rows in its state do to it.
    assert worst(found["softmax"], forward) > 0.2


def test_softmax_state_without_repeats_is_softmax() -> None:
    _, batch, stats, grad, flags = example()
    unique = replace(batch, state=torch.arange(20).view(4, 5))
    found = PREDICTORS["softmax_state"](unique, stats, grad, flags, 0.3)
    torch.testing.assert_close(found, PREDICTORS["softmax"](unique, stats, grad, flags, 0.3))


def test_missing_inputs_say_what_to_pass() -> None:
    _, batch, stats, grad, flags = example()
    with pytest.raises(ValueError, match=r"batch\.state, which is None: pass state \(B, T\)"):
        PREDICTORS["softmax_state"](replace(batch, state=None), stats, grad, flags, 1.0)
    with pytest.raises(ValueError, match=r"batch\.old_entropy, which is None: pass the \(B, T\)"):
        PREDICTORS["steer_released"](replace(batch, old_entropy=None), stats, grad, flags, 1.0)


@pytest.mark.parametrize("name", PREDICTORS)
def test_an_empty_mask_predicts_nothing(name: str) -> None:
    _, batch, stats, grad, flags = example()
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    assert (PREDICTORS[name](empty, stats, grad, flags, 1.0) == 0).all()


def test_predictions_carry_no_gradient() -> None:
    logits, batch, _, grad, flags = example()
    stats = token_stats(logits.requires_grad_(), batch.token_id)
    for name, predict in PREDICTORS.items():
        assert not predict(batch, stats, grad, flags, 1.0).requires_grad, name
