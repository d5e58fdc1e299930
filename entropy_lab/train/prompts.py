"""Prompts as token ids and as text: plain ones as they stand, chats through the chat template."""

from __future__ import annotations

from typing import Any

from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks.base import Prompt, prompt_text


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The token ids that the model reads before its response.

    A chat goes through the tokenizer's own template, with the opening of the answer added; text
    gets what the tokenizer puts in front of any (BOS), once, also where it stands there already.
    Raises ConfigError for a chat where the tokenizer has no template or one that refuses it, and
    for a prompt that the tokenizer cannot encode or makes nothing of.
    """
    from jinja2 import TemplateError

    try:
        ids = _ids(tokenizer, prompt)
    except ConfigError:
        raise
    except TemplateError as e:
        raise _unfit(prompt, f"the chat template refuses it: {e}") from None
    except Exception as e:  # tokenizers raises nothing more special
        raise _unfit(prompt, str(e)) from None
    if not ids:
        raise _unfit(prompt, "the tokenizer makes no token of it; is its tokenizer.json there?")
    return ids


def _unfit(prompt: Prompt, why: str) -> ConfigError:
    reason = (why.strip().splitlines() or ["no reason given"])[0]
    return ConfigError(
        f"the prompt {prompt_text(prompt)[:60]!r} does not fit the model's tokenizer ({reason}): "
        "give other data or another model"
    )


def _ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        ids, bos = tokenizer.encode(prompt), tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids
    if not tokenizer.chat_template:
        raise ConfigError(
            "the data has chat prompts, but the model's tokenizer has no chat template: give a "
            "model that has one, or data whose prompts are text"
        )
    messages = [dict(m) for m in prompt]
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    )


def turn_end(tokenizer: Any) -> int | None:
    """The special token that closes an answer in the tokenizer's chat template; None without one.

    A base model's EOS is often another one, which a model that was taught chats never writes.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    answer = "answer"
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except TemplateError:  # for chats of another shape alone
        return None
    ids = tokenizer.encode(text.rpartition(answer)[2].strip(), add_special_tokens=False)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids[0] if ids and ids[0] in special | set(tokenizer.all_special_ids) else None
