"""Runs with planted correlations, written through the real writer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entropy_lab.record import RunWriter, create_run, set_status

# Planted correlations with dH of what deep steps add, and the influence that its scores see.
DEEP = {"head": 0.5, "last_block": 0.8, "jvp_grad": 0.75, "jvp": 0.98}
PLANTED = {"cov": 0.15, "steer": 0.3, "softmax": 0.35, "softmax_state": 0.6}


@dataclass(frozen=True)
class Plan:
    """Sizes and planted numbers of a run; rho: correlation of each prediction with dH."""

    steps: int = 20
    groups: int = 8
    group_size: int = 4
    length: int = 6
    rho: dict[str, float] = field(default_factory=lambda: dict(PLANTED))
    slope: float = 50.0
    seed: int = 0
    method: str = "grpo"
    held_out: bool = True
    probed: bool = True
    inclusion_prob: float | None = None
    tail: float = 0.0  # share of rows with a twenty times larger dH and no relation
    audit: float = 1e-6
    entropy: tuple[float, float] = (0.5, 0.15)
    reward: tuple[float, float] = (0.2, 0.6)
    flush_steps: int = 4
    deep_every: int = 0  # 0: no deep steps
    floor: float = 0.0  # 0: no floor steps
    settings: dict[str, Any] = field(default_factory=dict)  # of the method
    lr: float = 2e-4
    minibatches: int = 1  # steps on a rollout
    drift: float = 0.0  # of the fixed set's dH per step; 0: it is not logged


def write_run(path: Path, plan: Plan | None = None, **changes: Any) -> list[dict[str, np.ndarray]]:
    """Write a finished run and return its token rows as handed in: one dict of arrays a step."""
    plan = plan or Plan(**changes)
    config = {
        "run": {"name": path.name, "seed": plan.seed},
        "method": {"name": plan.method, **plan.settings},
        "task": {"name": "arithmetic"},
        "optimizer": {"lr": plan.lr},
    }
    create_run(path, config, seeds={"run": plan.seed})
    rng = np.random.default_rng(plan.seed)
    blocks = []
    writer = RunWriter(
        path, predictors=list(plan.rho), flush_steps=plan.flush_steps, deep=plan.deep_every > 0
    )
    for step in range(plan.steps):
        samples = _samples(plan, step, rng)
        writer.samples(samples)
        if plan.probed:
            train = _tokens(plan, step, samples, rng, held_out=False)
            writer.tokens(train)
            blocks.append(train)
            if plan.held_out:
                other = _tokens(plan, step, samples, rng, held_out=True)
                writer.tokens(other)
                blocks.append(other)
        writer.step(_step_row(plan, step, blocks))
        writer.commit(_metrics(plan, step, rng))
    writer.close()
    set_status(path, "finished")
    return blocks


def _samples(plan: Plan, step: int, rng: np.random.Generator) -> dict[str, Any]:
    size = plan.groups * plan.group_size
    probability = 1.0 if plan.inclusion_prob is None else plan.inclusion_prob
    chance = np.full(size, probability, np.float32)
    if plan.inclusion_prob is not None:
        chance[: size // 2] = 1.0
    return {
        "step": np.full(size, step, np.int64),
        "rollout": np.full(size, step, np.int64),
        "group": (step << 32) + np.arange(size) // plan.group_size,
        "uid": (step << 32) + np.arange(size),
        "prompt_id": np.arange(size) // plan.group_size,
        "reward": rng.integers(0, 2, size).astype(np.float32),
        "advantage": rng.choice([-1.0, 0.0, 1.0], size).astype(np.float32),
        "length": np.full(size, plan.length, np.int32),
        "truncated": np.zeros(size, bool),
        "inclusion_prob": chance,
        "prompt": [f"{i} <script>alert(1)</script>" for i in range(size)],
        "response": ["7"] * size,
    }


def _tokens(
    plan: Plan, step: int, samples: dict[str, Any], rng: np.random.Generator, held_out: bool
) -> dict[str, np.ndarray]:
    uid = np.repeat(samples["uid"], plan.length)
    rows = len(uid)
    entropy = rng.gamma(0.5, 0.8, rows).astype(np.float32)
    y = rng.normal(size=rows)
    wild = rng.random(rows) < plan.tail
    columns = {
        "step": np.full(rows, step, np.int32),
        "micro": np.full(rows, int(held_out), np.int16),
        "uid": uid,
        "pos": np.tile(np.arange(plan.length, dtype=np.int32), len(samples["uid"])),
        "token_id": rng.integers(0, 16, rows).astype(np.int32),
        "state": rng.integers(0, max(2, rows // 2), rows) + step * 10**6,
        "age": np.zeros(rows, np.uint8),
        "flags": np.full(rows, 32 if held_out else 0, np.uint8),
        "advantage": np.repeat(samples["advantage"], plan.length),
        "old_logp": -rng.exponential(0.5, rows).astype(np.float32),
        "logp": -rng.exponential(0.5, rows).astype(np.float32),
        "entropy": entropy,
        "weight": np.ones(rows, np.float32),
        "grad_logp": rng.normal(size=rows).astype(np.float32),
    }
    scale = 1e-3 * (1 + 0.3 * np.sin(step))
    for name, rho in plan.rho.items():
        x = rho * y + np.sqrt(1 - rho**2) * rng.normal(size=rows)
        columns[f"dH_pred_{name}"] = (x * scale / plan.slope).astype(np.float32)
    if plan.deep_every:
        columns |= _deep_columns(plan, step, y * scale, columns["dH_pred_steer"], rng)
    columns["dH"] = (np.where(wild, 20 * rng.normal(size=rows), y) * scale).astype(np.float32)
    return columns


def _deep_columns(
    plan: Plan, step: int, dh: np.ndarray, steer: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Path forms in nats; influence follows the steer form, influence_marginal its opposite."""
    others = ("slope_error", "dH_pred_second_order", "dH_pred_slope", "dH_pred_jvp_momentum",
              "dH_pred_jvp_decay")  # fmt: skip
    missing = np.full(len(dh), np.nan, np.float32)
    out = dict.fromkeys(others, missing)
    for name, rho in DEEP.items():
        noise = np.sqrt(1 - rho**2) * dh.std() * rng.normal(size=len(dh))
        out[f"dH_pred_{name}"] = (rho * dh + noise).astype(np.float32)
    push = steer + 0.5 * steer.std() * rng.normal(size=len(dh)).astype(np.float32)
    out |= {"influence": push, "influence_marginal": -push}
    return out if step % plan.deep_every == 0 else dict.fromkeys(out, missing)


def _step_row(plan: Plan, step: int, blocks: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": step,
        "rollout": step // plan.minibatches,
        "probed": plan.probed,
        "inclusion_prob": plan.inclusion_prob or 1.0,
        "gradient_audit": plan.audit if step % 10 == 0 else float("nan"),
        "entropy_fixed": _line(plan.entropy, step, plan.steps),
        "repeat_max": 0.0 if step % 10 == 0 else float("nan"),
    }
    if plan.drift:
        row["dH_fixed"] = plan.drift
    if plan.floor and step % 10 == 0:
        row |= {"floor": plan.floor * (1 + step), "floor_rows": 10.0 * (1 + step)}
    if plan.deep_every and step % plan.deep_every == 0:
        row |= {"identity_error": 1e-6 * (1 + step), "influence_sum": -1e-3}
    if blocks:
        for name in plan.rho:
            row[f"dH_pred_{name}"] = float(blocks[-1][f"dH_pred_{name}"].mean())
            row[f"dH_pred_{name}_zero"] = 0.0
    return row


def _metrics(plan: Plan, step: int, rng: np.random.Generator) -> dict[str, Any]:
    change = -0.003 + 0.001 * rng.normal()
    return {
        "step": step,
        "rollout": step // plan.minibatches,
        "age": step % plan.minibatches,
        "reward": _line(plan.reward, step, plan.steps) + 0.02 * rng.normal(),
        "entropy_token_mean": _line(plan.entropy, step, plan.steps),
        "entropy_seq_mean": _line(plan.entropy, step, plan.steps),
        "dH_train": change * 1.3,
        "dH_heldout": change,
        "lr": plan.lr,
        "grad_norm": 0.5,
        "response_length": float(plan.length),
        "truncated_share": 0.0,
    }


def _line(ends: tuple[float, float], step: int, steps: int) -> float:
    return ends[0] + (ends[1] - ends[0]) * step / max(1, steps - 1)
