"""STEER's weights against the released code and against numbers made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import make_method
from token_examples import (
    golden_batch,
    hand_made,
)


@pytest.mark.parametrize(
    ("key", "params"),
    [
        ("steer_weight_exp08", {"lambda_min": 0.8}),
        ("steer_weight_exp07", {"lambda_min": 0.7}),
        ("steer_weight_linear", {"mapping": "linear", "lambda_min": 0.8, "lambda_max": 1.2}),
    ],
)
def test_steer_weights_equal_the_released_code(key: str, params: dict[str, Any]) -> None:
    golden, batch, stats = golden_batch()
    plan = make_method("steer", omega="steer_released", **params).plan(batch, stats)
    assert isinstance(plan.weight, Tensor)
    np.testing.assert_allclose(plan.weight.numpy(), golden[key], rtol=0, atol=1e-6)
    valid = golden[key][golden["mask"] > 0]
    assert plan.scalars is not None
    assert plan.scalars["weight_mean"] == pytest.approx(valid.mean(), abs=1e-6)
    assert plan.scalars["weight_min"] == pytest.approx(valid.min(), abs=1e-6)
    assert plan.scalars["weight_max"] == pytest.approx(valid.max(), abs=1e-6)


def steer_weight(omega: Tensor, **params: Any) -> np.ndarray:
    method = make_method("steer", **params)
    return method._weights(omega).numpy()  # type: ignore[attr-defined]


OMEGA = torch.tensor([-0.4, 0.1, 0.0, 0.2], dtype=torch.float64)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        # k = -ln 0.7 / 0.4, so the weight is 0.7 ** (|Omega| / 0.4).
        ({}, [0.7, 0.7**0.25, 1.0, 0.7**0.5]),
        ({"symmetric": False}, [0.7, 1.0, 1.0, 1.0]),
        ({"symmetric": False, "lambda_max": 1.1}, [0.7, 0.7**-0.25, 1.0, 1.1]),
        (
            {"mapping": "linear", "lambda_min": 0.8, "lambda_max": 1.2},
            [0.8, 1.1, 1.2, 1.0],
        ),
        (
            {"mapping": "linear", "lambda_min": 0.6, "lambda_max": 1.2, "symmetric": False},
            [0.6, 1.1, 1.0, 1.2],
        ),
        ({"mapping": "binary", "quantile": 0.75}, [0.7, 1.0, 1.0, 1.0]),
        ({"mapping": "binary", "quantile": 0.5}, [0.7, 1.0, 1.0, 0.7]),
        ({"mapping": "binary", "quantile": 0.5, "symmetric": False}, [0.7, 1.0, 0.7, 1.0]),
        ({"lambda_min": 1.0}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_steer_maps_by_hand(params: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(steer_weight(OMEGA, **params), expected, rtol=1e-12)


def test_steer_degenerate_scores() -> None:
    same = torch.full((3,), 0.3, dtype=torch.float64)
    linear = {"mapping": "linear", "lambda_min": 0.8, "lambda_max": 1.1}
    np.testing.assert_allclose(steer_weight(same, **linear), [0.95] * 3)
    np.testing.assert_allclose(steer_weight(same, symmetric=False, **linear), [0.95] * 3)
    np.testing.assert_allclose(steer_weight(same, mapping="binary", quantile=0.9), [1.0] * 3)
    np.testing.assert_allclose(steer_weight(0 * same), [1.0] * 3)
    # A maximum below 0.02 counts as 0.02: half of it costs only the square root of lambda_min.
    small = torch.tensor([0.01, 0.0], dtype=torch.float64)
    np.testing.assert_allclose(steer_weight(small), [0.7**0.5, 1.0])


def test_steer_of_the_theorem_leaves_clipped_tokens_at_full_weight() -> None:
    advantage, logp = [1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, -2.0, -2.0]
    batch, stats = hand_made(advantage, logp, old=[-1.0, -1.5, -1.5, -2.0])
    stats = replace(stats, entropy=torch.full_like(stats.logp, 1.5))
    plan = make_method("steer").plan(batch, stats)
    assert plan.omega is not None and isinstance(plan.weight, Tensor) and plan.scalars is not None
    p = math.exp(-1.0)
    assert float(plan.omega[0, 0]) == pytest.approx(-p * (1 - p) * 0.5)
    assert plan.omega[0, 1] == plan.omega[0, 2] == 0
    assert plan.weight[0, 1] == plan.weight[0, 2] == 1.0
    assert plan.scalars["max_abs_omega"] == pytest.approx(p * (1 - p) * 0.5)
    assert float(plan.weight[0, 0]) == pytest.approx(0.7)
    # Clipping an upper bound moved away: the second token now counts, with its ratio.
    moved = make_method("steer", clip_high=1.0).plan(batch, stats).omega
    assert moved is not None
    assert float(moved[0, 1]) == pytest.approx(-math.exp(0.5) * p * (1 - p) * 0.5)
