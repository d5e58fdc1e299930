"""What a user should know about a run before it starts, a line each."""

from __future__ import annotations

from torch import nn

from entropy_lab.probe.world import ALONE, Alone
from entropy_lab.train.config import Config
from entropy_lab.train.trainable import lost_to_rounding


def notes(
    config: Config, model: nn.Module, params: list[nn.Parameter], world: Alone = ALONE
) -> list[str]:
    """What to know about the trained parameters: how many of how many, where some are frozen, and
    where half-precision weights are too coarse for the steps of AdamW; and about idle ranks."""
    lines = []
    responses = config.rollout.prompts * config.rollout.group_size // config.train.minibatches
    micros = -(-responses // config.train.micro_batch)
    if micros < world.size and not config.train.micro_tokens:
        lines.append(
            f"{micros} of {world.size} ranks have a micro-batch to train on: lower "
            f"train.micro_batch to {max(1, responses // world.size)} for all of them"
        )
    trained, every = (sum(p.numel() for p in ps) for ps in (params, model.parameters()))
    if trained < every:
        lines.append(f"trained: {trained:,} of {every:,} parameters")
    lr = config.optimizer.lr
    lost = lost_to_rounding(params, lr) if lr and config.optimizer.name == "adamw" else 0.0
    if lost >= 0.5:
        lines.append(
            f"model.dtype = bfloat16: a step of optimizer.lr = {lr:g} is lost to rounding in "
            f"{lost:.0%} of the weights; model.dtype = float32 with model.autocast = bfloat16 "
            "keeps it"
        )
    return lines
