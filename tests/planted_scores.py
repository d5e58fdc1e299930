"""Deliberately broken scores for the toy's loop: what the probe measures with them is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

import toy
from entropy_lab import token_stats
from entropy_lab.types import TokenBatch, TokenStats


class After:
    """True from the optimizer's step to its next one: the probe's second pass."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.on = False
        optimizer.register_step_pre_hook(lambda *_: self._set(False))
        optimizer.register_step_post_hook(lambda *_: self._set(True))

    def _set(self, on: bool) -> None:
        self.on = on

    def __bool__(self) -> bool:
        return self.on and not torch.is_grad_enabled()


Score = Callable[[toy.Rows], TokenStats]
SCORE_OF = toy.score_of


def _stats(logits: Tensor, rows: toy.Rows) -> TokenStats:
    return token_stats(logits, rows.ids[:, toy.P :])


def dropout_after(model: nn.Module, after: After) -> Score:
    def score(rows: toy.Rows) -> TokenStats:
        model.drop.train(bool(after))
        try:
            return SCORE_OF(model)(rows)
        finally:
            model.drop.eval()

    return score


def padding_after(model: nn.Module, after: After) -> Score:
    """After the step, pad tokens stand between prompt and response, and the model sees them."""

    def score(rows: toy.Rows) -> TokenStats:
        if not after:
            return SCORE_OF(model)(rows)
        pad = torch.zeros_like(rows.ids[:, :1])
        ids = torch.cat([rows.ids[:, : toy.P], pad, rows.ids[:, toy.P :]], 1)
        return _stats(model(ids)[:, toy.P : -1], rows)

    return score


def mask_shifted(model: nn.Module, after: After) -> Score:
    return lambda rows: _stats(model(rows.ids)[:, toy.P :], rows)


def wrong_entropy(model: nn.Module, after: After) -> Score:
    def score(rows: toy.Rows) -> TokenStats:
        stats = SCORE_OF(model)(rows)
        return replace(stats, entropy=stats.entropy.roll(1, dims=0))

    return score


def bf16_entropy(model: nn.Module, after: After) -> Score:
    def score(rows: toy.Rows) -> TokenStats:
        stats = SCORE_OF(model)(rows)
        return replace(stats, entropy=stats.entropy.bfloat16().to(stats.logp.dtype))

    return score


def logp_without_temperature(model: nn.Module, after: After) -> Score:
    """Entropy and moments of logits / 2, logp of the logits themselves."""

    def score(rows: toy.Rows) -> TokenStats:
        logits = model(rows.ids)[:, toy.P - 1 : -1]
        return replace(_stats(logits / 2, rows), logp=_stats(logits, rows).logp)

    return score


def unsteady(model: nn.Module, after: After) -> Score:
    calls = [0]

    def score(rows: toy.Rows) -> TokenStats:
        calls[0] += 1
        stats = SCORE_OF(model)(rows)
        return replace(stats, entropy=stats.entropy * (1 + 1e-3 * calls[0]))

    return score


SCORES: dict[str, tuple[Callable[[nn.Module, After], Score], tuple[str, ...]]] = {
    "dropout on in the pass after": (dropout_after, ("same_state_change", "floor")),
    "other padding after": (padding_after, ("floor",)),
    "mask shifted by one": (mask_shifted, ("same_state",)),
    "entropy of the wrong row": (wrong_entropy, ("same_state", "entropy_of_row")),
    "H in bf16": (bf16_entropy, ("precision",)),
    "temperature not applied to logp": (logp_without_temperature, ("moments",)),
    "a score that drifts": (unsteady, ("repeat",)),
}


def batches(model: nn.Module, seed: int, size: int, dtype: torch.dtype = torch.float32) -> list:
    """The toy's batches with a uid of its own for every response of a run."""
    return [(rows, _renamed(batch, seed)) for rows, batch in _BATCHES(model, seed, size, dtype)]


_BATCHES = toy.batches


def _renamed(batch: TokenBatch, seed: int) -> TokenBatch:
    assert batch.uid is not None and batch.group is not None
    return replace(batch, uid=(seed << 32) + batch.uid, group=(seed << 32) + batch.group)
