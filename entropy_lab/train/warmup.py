"""The warm-up: supervised training on worked traces of which some steps are wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entropy_lab.train.config import ModelConfig
from entropy_lab.train.tasks import WorkedTask

IGNORED = -100

# OnIteration(iterations done, iterations in all, loss in nats per token)
OnIteration = Callable[[int, int, float], None]


def warm_up(
    model: Any,
    tokenizer: Any,
    task: WorkedTask,
    config: ModelConfig,
    progress: OnIteration | None = None,
) -> float:
    """Train `model` in place on corrupted traces; the mean loss of the last tenth, nats per token.

    Equal seeds and thread counts give equal weights on CPU; no global random state is used.
    """
    rng = random.Random(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.warmup_lr,
        betas=(config.warmup_beta1, config.warmup_beta2),
        weight_decay=0.0,
    )
    total = config.warmup_iterations
    model.train()
    losses = []
    for done in range(total):
        for group in optimizer.param_groups:
            group["lr"] = config.warmup_lr * _rate(done, total, config)
        ids, labels = _batch(tokenizer, task, config, rng)
        logits = model(input_ids=ids).logits[:, :-1]  # (B, T-1, V)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress(done + 1, total, losses[-1])
    model.eval()
    last = losses[-max(1, total // 10) :]
    return sum(last) / len(last) if last else float("nan")


def _rate(done: int, total: int, config: ModelConfig) -> float:
    """Factor on the learning rate: a linear rise, one, then a linear fall to zero."""
    rise = min(1.0, (done + 1) / max(1, config.warmup_ramp))
    falling = max(1.0, total * config.warmup_decay)
    return rise * min(1.0, (total - done) / falling)


def _batch(
    tokenizer: Any, task: WorkedTask, config: ModelConfig, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Prompt, trace and EOS, right-padded; labels (B, T) are IGNORED on prompt and padding."""
    rows, labels = [], []
    for problem in task.problems(config.warmup_sequences, rng):
        prompt = tokenizer(problem.prompt)["input_ids"]
        trace = task.trace(problem, rng, config.warmup_corrupt)
        response = [*tokenizer(trace)["input_ids"], tokenizer.eos_token_id]
        rows.append([*prompt, *response])
        labels.append([IGNORED] * len(prompt) + response)
    longest = max(map(len, rows))
    # Padding stands after the text, so causal attention never sees it.
    padded = [r + [tokenizer.pad_token_id] * (longest - len(r)) for r in rows]
    labels = [r + [IGNORED] * (longest - len(r)) for r in labels]
    return torch.tensor(padded), torch.tensor(labels)
