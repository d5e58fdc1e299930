"""Small batches with known tokens, shared by the tests of the methods."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_lab.interventions import make_method
from entropy_lab.loss import policy_loss
from entropy_lab.stats import token_stats
from entropy_lab.types import TokenBatch, TokenPlan, TokenStats
from golden import load_golden

EVERY_METHOD: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {}),
    ("clip_higher", {}),
    ("clip_cov", {"ratio": 0.1, "lb": 0.0, "ub": 3.0}),
    ("kl_cov", {"ratio": 0.1}),
    ("entropy_bonus", {"beta": 0.01}),
    ("steer", {}),
    ("steer", {"mapping": "linear", "lambda_min": 0.8, "lambda_max": 1.2}),
    ("steer", {"mapping": "binary", "quantile": 0.8}),
    ("steer", {"symmetric": False}),
    ("steer", {"omega": "steer_released", "symmetric": False, "mapping": "linear"}),
    ("influence_steer", {}),
    ("entropy_target", {}),
    ("clip_lower", {"clip_low": 0.1}),
    ("fork_tokens", {}),
    ("w_reinforce", {}),
    ("w_reinforce", {"polarity": "positive"}),
    ("w_reinforce", {"polarity": "negative"}),
    ("entropy_advantage", {}),
    ("unlikeliness", {}),
    ("opo", {}),
    ("dr_grpo", {"constant_length": 9}),
    ("rloo", {}),
    ("qae", {}),
    ("ce_gppo", {}),
    ("cispo", {}),
    ("erc", {}),
    ("dppo_tv", {}),
    ("dppo_kl", {}),
    ("gspo", {"clip_low": 0.1, "clip_high": 0.1}),
    ("quadrant", {"pos_likely": 0.5, "pos_unlikely": 2.0, "neg_likely": 0.0}),
    ("adaptive_entropy", {"start": 0.003}),
    ("adaptive_entropy", {"variant": "trl", "start": 0.1, "target": 2.0}),
    ("entropy_disc_batch", {"mu": 0.1}),
    ("entropy_disc_vocab", {"mu": 0.5, "max_share": 0.1}),
    ("stare", {"variant": "C2", "gate": 3.0}),
    ("entropy_pi", {"probability": 0.2, "target": 1.0}),
    ("entrocraft", {"total_steps": 100}),
    ("pos_adv_reweight", {"start": 0.4}),
    ("repo_r", {"zeta": 0.05}),
    ("bapo", {}),
]

# What a method cannot be made without.
REQUIRED: dict[str, dict[str, Any]] = {
    "entropy_bonus": {"beta": 0.1},
    "clip_lower": {"clip_low": 0.1},
    "dr_grpo": {"constant_length": 8},
    "entrocraft": {"total_steps": 100},
}


def example(seed: int = 0, rows: int = 6, length: int = 8, vocab: int = 11):
    """Logits (B, T, V), a ragged batch with clipped tokens, and its statistics."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=(rows, length, vocab)) * 1.5)
    token = torch.tensor(rng.integers(0, vocab, (rows, length)))
    mask = torch.arange(length)[None] < torch.tensor(rng.integers(2, length + 1, rows))[:, None]
    stats = token_stats(logits, token)
    batch = TokenBatch(
        token_id=token,
        mask=mask,
        advantage=torch.tensor(rng.normal(size=(rows, 1))).expand(rows, length).contiguous(),
        old_logp=stats.logp + torch.tensor(rng.normal(size=(rows, length)) * 0.4),
        old_entropy=stats.entropy * torch.linspace(0.9, 1.1, rows * length).view(rows, length),
        uid=torch.tensor(rng.permutation(1000)[:rows]),
        group=torch.arange(rows) // 3,
        reward=torch.tensor(rng.integers(0, 2, rows)).double(),
        influence_marginal=torch.tensor(rng.normal(size=(rows, length)) * 1e-4),
        step=4,
        seed=9,
    )
    return logits, batch, stats


def hand_made(advantage: list[float], logp: list[float], old: list[float] | None = None):
    """One response whose tokens have just these advantages and log-probabilities."""
    values = torch.tensor([logp], dtype=torch.float64)
    batch = TokenBatch(
        token_id=torch.zeros_like(values, dtype=torch.int64),
        mask=torch.ones_like(values, dtype=torch.bool),
        advantage=torch.tensor([advantage], dtype=torch.float64),
        old_logp=values if old is None else torch.tensor([old], dtype=torch.float64),
        uid=torch.tensor([3]),
    )
    return batch, TokenStats(values, values + 1.0, values, values, values)


def golden_batch() -> tuple[dict[str, np.ndarray], TokenBatch, TokenStats]:
    golden = load_golden()
    rows = golden["action"].shape[0]
    batch = TokenBatch(
        token_id=torch.tensor(golden["action"]),
        mask=torch.tensor(golden["mask"]) > 0,
        advantage=torch.tensor(golden["advantage"]),
        old_logp=torch.tensor(golden["logp_old"]),
        old_entropy=torch.tensor(golden["entropy_old"]),
        uid=torch.arange(rows),
        group=torch.arange(rows) // 8,
        reward=torch.tensor(golden["rewards"]),
    )
    return golden, batch, token_stats(torch.tensor(golden["z"]), batch.token_id)


def loss_and_grad(batch: TokenBatch, stats: TokenStats, plan: TokenPlan) -> tuple[float, Tensor]:
    leaf = stats.logp.detach().clone().requires_grad_()
    loss = policy_loss(replace(stats, logp=leaf), batch, plan).loss
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.item(), grad


def differs_from(base: str, plan: TokenPlan, batch: TokenBatch, stats: TokenStats) -> Tensor:
    """Where the gradient of a plan is not that of the method `base`, both as a token mean."""
    _, grad = loss_and_grad(batch, stats, replace(plan, normaliser="token_mean"))
    _, plain = loss_and_grad(batch, stats, make_method(base).plan(batch, stats))
    return (grad - plain).abs() > 1e-14


def assert_same_plan(found: TokenPlan, expected: TokenPlan) -> None:
    for f in fields(TokenPlan):
        a, b = getattr(found, f.name), getattr(expected, f.name)
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        else:
            assert a == b or a == pytest.approx(b, rel=1e-12)
