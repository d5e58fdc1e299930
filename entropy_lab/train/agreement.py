"""Whether the sampler draws from the policy that is trained: its log-probabilities against ours."""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_lab.errors import RunError
from entropy_lab.train.rollout import Responses, RolloutEngine

_WORST = 10.0  # a prompt's own mean may be this many tolerances: few tokens scatter more


def check_agreement(responses: Responses, logp: Tensor, engine: RolloutEngine) -> None:
    """Compare rollout_logp of `responses` with the trainer's logp (B, T) of the same tokens, nats.

    With d = rollout_logp - logp over response tokens: mean |d| <= engine.tolerance, and over the
    responses to any one prompt mean |d| <= 10 tolerance, which a state left over for that prompt
    alone breaks. Raises RunError with mean, max and KL(sampler | trainer) ~ mean of exp(-d) - 1 + d
    where one does not hold or a d is no number. An engine that reports no logp is not judged.
    """
    if responses.logp is None:
        return
    mask, tolerance = responses.mask, engine.tolerance
    d = torch.where(mask, responses.logp.double() - logp.double(), 0.0)  # (B, T)
    mean = float(d.abs().sum() / mask.sum())
    worst, where = worst_prompt(responses, d.abs())
    if mean <= tolerance and worst <= _WORST * tolerance:
        return
    kl = float((torch.expm1(-d) + d).sum() / mask.sum())
    raise RunError(
        f"the sampler is not the policy that is trained: |rollout_logp - old_logp| is {mean:.2g} "
        f"on average over {int(mask.sum())} tokens (tolerance {tolerance:.2g}), at most "
        f"{float(d.abs().max()):.2g}, KL {kl:.2g}, and {worst:.2g} on the worst prompt, of {where} "
        "tokens. Large everywhere: a weight update that the engine took in only in part; large on "
        "long prompts alone: a stale prefix cache; small and even: precision or kernels (set "
        "vllm.dtype as the trainer's, or raise vllm.tolerance). Nothing was trained on it"
    )


def worst_prompt(responses: Responses, gap: Tensor) -> tuple[float, int]:
    """(largest mean of gap over the response tokens of one prompt, that prompt's length)."""
    length = responses.prompt_mask.sum(1)  # (B,)
    prompt = torch.where(responses.prompt_mask, responses.prompt_id, -1)
    kinds, kind = torch.unique(prompt, dim=0, return_inverse=True)  # (B,)
    zeros = torch.zeros(len(kinds), dtype=gap.dtype, device=gap.device)
    tokens = zeros.index_add(0, kind, responses.mask.sum(1).to(gap.dtype))
    means = zeros.index_add(0, kind, gap.sum(1)) / tokens.clamp(min=1)
    worst = int(means.argmax())
    return float(means[worst]), int(length[kind == worst][0])
