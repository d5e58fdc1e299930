"""What is added to a reward: a bonus for the format, a penalty for length."""

from __future__ import annotations

from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.answers import answer_of


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    r"""DAPO's soft overlong punishment, in [-1, 0] (arXiv 2503.14476, eq. 13).

        0                                        length <= max_tokens - buffer
        ((max_tokens - buffer) - length)/buffer  up to max_tokens
        -1                                       beyond

    0 with a buffer of 0.
    length, max_tokens and buffer in tokens. Raises ConfigError for a buffer above max_tokens.
    """
    if buffer > max_tokens:
        raise ConfigError(
            f"reward.overlong_buffer = {buffer} is more than the {max_tokens} tokens of a "
            "response: lower it, or raise rollout.max_tokens"
        )
    excess = length - (max_tokens - buffer)
    return 0.0 if buffer == 0 or excess <= 0 else -min(1.0, excess / buffer)


def is_well_formed(response: str) -> bool:
    """Whether an answer is stated where one is looked for, and a thinking block, if any, ends."""
    blocks = response.count("<think>"), response.count("</think>")
    # The opening tag is often part of the prompt.
    return blocks in ((0, 0), (0, 1), (1, 1)) and answer_of(response) is not None
