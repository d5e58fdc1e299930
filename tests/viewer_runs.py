"""Runs for the token viewer: texts, tokens and numbers chosen by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from entropy_lab.record import RunWriter, create_run, write_vocab


def write_texts(
    path: Path,
    responses: list[tuple[str, str, list[int]]],
    vocab: list[str | None] | None = None,
    *,
    steps: int = 1,
    group_size: int = 2,
    seed: int = 0,
    measured: bool = True,
) -> list[dict[str, np.ndarray]]:
    """Write a run whose every step holds `responses`: (prompt, response, token ids) each.

    measured: dH is random, else missing. Returns the token rows of each step as handed in.
    """
    create_run(path, {"run": {"seed": seed}, "method": {"name": "grpo"}}, seeds={"run": seed})
    if vocab is not None:
        write_vocab(path, vocab)
    rng = np.random.default_rng(seed)
    lengths = np.array([len(ids) for _, _, ids in responses])
    blocks = []
    with RunWriter(path, predictors=["steer", "softmax"]) as writer:
        for step in range(steps):
            uid = (step << 32) + np.arange(len(responses))
            advantage = rng.normal(size=len(responses)).astype(np.float32)
            writer.samples(_samples(step, uid, lengths, advantage, responses, group_size))
            rows = int(lengths.sum())
            block = {
                "step": np.full(rows, step, np.int32),
                "micro": np.zeros(rows, np.int16),
                "uid": np.repeat(uid, lengths),
                "pos": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
                "token_id": np.concatenate([ids for _, _, ids in responses]).astype(np.int32),
                "state": np.arange(rows),
                "age": np.zeros(rows, np.uint8),
                "flags": np.zeros(rows, np.uint8),
                "advantage": np.repeat(advantage, lengths),
                "weight": np.ones(rows, np.float32),
            }
            for name in ("old_logp", "logp"):
                block[name] = -rng.exponential(0.5, rows).astype(np.float32)
            block["entropy"] = rng.gamma(0.5, 0.8, rows).astype(np.float32)
            for name in ("grad_logp", "dH_pred_steer", "dH_pred_softmax", "dH"):
                block[name] = (1e-3 * rng.normal(size=rows)).astype(np.float32)
            if not measured:
                block["dH"][:] = np.nan
            writer.tokens(block)
            writer.step({"step": step, "rollout": step, "probed": True, "inclusion_prob": 1.0})
            writer.commit({"step": step, "entropy_token_mean": 0.5, "reward": 0.5, "lr": 1e-3})
            blocks.append(block)
    return blocks


def _samples(
    step: int,
    uid: np.ndarray,
    lengths: np.ndarray,
    advantage: np.ndarray,
    responses: list[tuple[str, str, list[int]]],
    group_size: int,
) -> dict[str, Any]:
    size = len(responses)
    return {
        "step": np.full(size, step),
        "rollout": np.full(size, step),
        "group": (step << 32) + np.arange(size) // group_size,
        "uid": uid,
        "prompt_id": np.arange(size) // group_size,
        "reward": (np.arange(size) % 2).astype(np.float32),
        "advantage": advantage,
        "length": lengths.astype(np.int32),
        "truncated": np.zeros(size, bool),
        "inclusion_prob": np.ones(size, np.float32),
        "prompt": [prompt for prompt, _, _ in responses],
        "response": [response for _, response, _ in responses],
    }
