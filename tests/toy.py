"""A small causal model and a GRPO-like loop in plain PyTorch, for tests of the probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from entropy_lab import Probe, token_stats
from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import policy_loss
from entropy_lab.stats import state_hash
from entropy_lab.types import TokenBatch, TokenStats

V, P, T = 11, 3, 5


class Toy(nn.Module):
    """Logits of the next token from the two tokens before it."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.embed = nn.Embedding(V, 16)
        self.mix = nn.Linear(32, 24)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(24, V)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)  # (B, L, 16)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        return self.head(self.drop(torch.tanh(self.mix(torch.cat([x, before], -1)))))


@dataclass(frozen=True)
class Rows:
    """One micro-batch for the toy: prompt and response tokens (B, P+T)."""

    ids: Tensor


def score_of(model: nn.Module) -> Callable[[Rows], TokenStats]:
    return lambda rows: token_stats(model(rows.ids)[:, P - 1 : -1], rows.ids[:, P:])


def data(seed: int, count: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Token ids (count, P+T) and advantages (count, T); four prompts, so states repeat."""
    g = torch.Generator().manual_seed(seed)
    prompts = torch.randint(V, (4, P), generator=g).repeat_interleave(count // 4, 0)
    ids = torch.cat([prompts, torch.randint(V, (count, T), generator=g)], dim=1)
    advantage = torch.randn(count, 1, generator=g, dtype=torch.float64).to(dtype).expand(-1, T)
    return ids, advantage


def batches(
    model: nn.Module, seed: int, size: int, dtype: torch.dtype = torch.float32
) -> list[tuple[Rows, TokenBatch]]:
    ids, advantage = data(seed, dtype=dtype)
    mask = torch.arange(T) < torch.arange(16)[:, None] % T + 1  # lengths 1..T
    state = state_hash(ids[:, :P], torch.ones_like(ids[:, :P], dtype=torch.bool), ids[:, P:])
    parts = []
    for a in range(0, 16, size):
        rows = slice(a, a + size)
        inputs = Rows(ids[rows])
        with torch.no_grad():
            old = score_of(model)(inputs)
        # An older policy, so that ratios differ from one.
        noise = torch.linspace(-0.4, 0.4, 16 * T, dtype=dtype).reshape(16, T)[rows]
        batch = TokenBatch(
            token_id=ids[rows, P:],
            mask=mask[rows],
            advantage=advantage[rows],
            old_logp=old.logp + noise,
            old_entropy=old.entropy,
            state=state[rows],
            uid=torch.arange(a, a + size),
            group=torch.arange(a, a + size) // 4,
            reward=advantage[rows, 0].float(),
        )
        parts.append((inputs, batch))
    return parts


def run_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run_dir: Path | None,
    *,
    steps: int = 3,
    size: int = 8,
    method: str = "grpo",
    params: dict | None = None,
    extra_loss: Callable[[nn.Module], Tensor] | None = None,
    held_out: bool = False,
    clip: float = 0.0,
    **probe_options,
) -> Probe | None:
    """`steps` optimizer steps on fresh data, with a probe where run_dir is given."""
    dtype = next(model.parameters()).dtype
    acting = make_method(method, **(params or {}))
    score = score_of(model)
    options = {"strict": True, **probe_options}
    probe = Probe(model, optimizer, run_dir, score, **options) if run_dir else None
    for step in range(steps):
        micros = batches(model, 100 + step, size, dtype)
        with torch.no_grad():
            stats = [score(rows) for rows, _ in micros] if acting.needs else None
        plans = plan_step(acting, [b for _, b in micros], stats)
        for (rows, batch), (plan, share) in zip(micros, plans, strict=True):
            forward = probe.record(rows, batch) if probe else score(rows)
            out = policy_loss(forward, batch, plan, share)
            if probe:
                probe.annotate(weight=plan.weight, flags=out.flags)
            out.loss.backward()
        if extra_loss is not None:
            extra_loss(model).backward()
        if clip:
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip))
            if probe:
                probe.note(kappa=min(1.0, clip / (norm + 1e-6)))
        if held_out:
            later = batches(model, 900 + step, size, dtype)
            if probe:
                probe.hold_out(later)
        optimizer.step()
        optimizer.zero_grad()
    if probe:
        probe.close()
    return probe


def adamw(model: nn.Module, lr: float = 1e-2) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
