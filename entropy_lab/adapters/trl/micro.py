"""One micro-batch of TRL as a TokenBatch, with the flags of TRL's own loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entropy_lab.adapters.trl.rollout import (
    GROUP,
    OLD_ENTROPY,
    REWARD,
    TRUNCATED,
    UID,
    loss_mask,
    per_token,
)
from entropy_lab.adapters.trl.score import Inputs
from entropy_lab.stats import state_hash
from entropy_lab.types import CLIPPED_HIGH, CLIPPED_LOW, DUAL_CLIPPED, TokenBatch

CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
# One row per response, so that some responses can be measured alone.
_MORE = ("token_type_ids", "mm_token_type_ids")
_IMAGES = ("pixel_values", "image_grid_thw", "image_sizes", "num_images", "pixel_attention_mask")


def model_inputs(micro: dict[str, Any]) -> Inputs:
    """What a pass over the micro-batch reads; ValueError for images."""
    images = [name for name in _IMAGES if micro.get(name) is not None]
    if images:
        raise ValueError(
            f"the micro-batch holds images ({images[0]}): the probe measures text alone; train "
            "without images or without the probe"
        )
    return Inputs(
        torch.cat([micro["prompt_ids"], micro["completion_ids"]], dim=1),
        torch.cat([micro["prompt_mask"], micro["completion_mask"]], dim=1),
        micro["completion_ids"],
        {name: micro[name] for name in _MORE if micro.get(name) is not None},
    )


def token_batch(
    micro: dict[str, Any],
    logp: Tensor | None,
    entropy: Tensor | None,
    *,
    age: int,
    step: int,
    seed: int,
) -> TokenBatch:
    """The micro-batch's fixed facts, (B, T).

    logp, entropy: of the loss forward; they are old_logp and old_entropy where TRL keeps none,
    which it does where every response is trained on once, by the weights that sampled it. Raises
    ValueError where logp is needed and None.
    """
    mask = loss_mask(micro)
    old_logp, old_entropy = micro.get("old_per_token_logps"), micro.get(OLD_ENTROPY)
    if old_logp is None:
        if logp is None:
            raise ValueError("TRL keeps no old log-probabilities for this micro-batch")
        old_logp, old_entropy = logp.detach(), None if entropy is None else entropy.detach()
    weight = micro.get("importance_sampling_ratio")
    return TokenBatch(
        token_id=micro["completion_ids"],
        mask=mask,
        advantage=per_token(micro["advantages"], mask),
        old_logp=old_logp,
        old_entropy=old_entropy,
        rollout_logp=micro.get("sampling_per_token_logps"),
        rollout_weight=None if weight is None else weight.expand(mask.shape),
        state=state_hash(micro["prompt_ids"], micro["prompt_mask"].bool(), micro["completion_ids"]),
        uid=micro[UID],
        group=micro[GROUP],
        reward=micro[REWARD].float(),
        truncated=micro[TRUNCATED],
        age=age,
        step=step,
        seed=seed,
    )


def loss_flags(trainer: Any, batch: TokenBatch, logp: Tensor) -> Tensor:
    """Flags (B, T) u8 of the clips of TRL's loss, by the rules of its own metrics."""
    log_ratio = logp.detach() - batch.old_logp
    if trainer.importance_sampling_level == "sequence":
        length = batch.mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = (log_ratio * batch.mask).sum(1, keepdim=True) / length
    ratio, up, down = log_ratio.exp(), batch.advantage > 0, batch.advantage < 0  # (B, T) or (B, 1)
    flags = torch.zeros_like(batch.mask, dtype=torch.uint8)
    if trainer.loss_type in CLIPPED_LOSSES:
        delta = trainer.args.delta
        if delta is not None:
            flags = flags | DUAL_CLIPPED * (down & (ratio > delta)).to(torch.uint8)
        flags = flags | CLIPPED_LOW * (down & (ratio < 1 - trainer.epsilon_low)).to(torch.uint8)
        flags = flags | CLIPPED_HIGH * (up & (ratio > 1 + trainer.epsilon_high)).to(torch.uint8)
    elif trainer.loss_type == "cispo":
        flags = flags | CLIPPED_HIGH * (up & (ratio > trainer.epsilon_high)).to(torch.uint8)
    return flags.masked_fill(~batch.mask, 0)
