"""Prompts as token ids and as text: plain ones as they stand, chats through the chat template."""

from __future__ import annotations

from typing import Any

from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks.base import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The token ids that the model reads before its response.

    A chat goes through the tokenizer's own template, with the opening of the answer added. Raises
    ConfigError for a chat where the tokenizer has no template.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if not tokenizer.chat_template:
        raise ConfigError(
            "the data has chat prompts, but the model's tokenizer has no chat template: give a "
            "model that has one, or data whose prompts are text"
        )
    messages = [dict(m) for m in prompt]
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    )
