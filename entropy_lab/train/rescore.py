"""A run's newest checkpoint as a scorer of prompts and responses, for `entropy-lab doctor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from entropy_lab.errors import RunError
from entropy_lab.record import open_run
from entropy_lab.train.checkpoint import latest_checkpoint, load_checkpoint
from entropy_lab.train.config import Config, config_from_dict
from entropy_lab.train.launch import is_ours, restored
from entropy_lab.train.model import load_model, new_model
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.rollout import Responses
from entropy_lab.train.tasks import make_task, worked_task
from entropy_lab.train.tokenizer import character_tokenizer


class Rescorer(NamedTuple):
    """step: optimizer steps taken; vocab: size of the softmax; score(prompts, token_ids) ->
    (logp, entropy), arrays (T,) in nats for each response; text(token_id) decodes one."""

    step: int
    vocab: int
    score: Callable[[Sequence[str], Sequence[NDArray]], tuple[list[NDArray], list[NDArray]]]
    text: Callable[[NDArray], str]


def open_rescorer(run_dir: Path | str) -> Rescorer:
    """The newest complete checkpoint of a run of the bundled trainer, at its own temperature.

    Raises RunError where there is none, it is damaged, or another trainer wrote the run, and
    ConfigError where the data files of the run, which say how its prompts were chats, are gone.
    """
    path = latest_checkpoint(run_dir)
    if path is None:
        raise RunError(f"{run_dir} has no checkpoint")
    settings = restored(open_run(run_dir).info.get("config") or {})
    if not is_ours(settings):
        raise RunError(f"{run_dir} is not a run of the bundled trainer")
    config = config_from_dict(settings, "run.json")
    model, tokenizer = skeleton(config)
    load_checkpoint(path, model)
    task = make_task(config.task.name, **config.task.params)
    # No prompt is measured: all of them are wanted, those left out for their length as well.
    chats = task.source(lambda prompt: []).chats
    stats = make_score(model, config.rollout.temperature, config.model.autocast)

    def score(
        prompts: Sequence[str], token_ids: Sequence[NDArray]
    ) -> tuple[list[NDArray], list[NDArray]]:
        logp, entropy = [], []
        size = config.train.micro_batch
        for a in range(0, len(prompts), size):
            ids = [encode_prompt(tokenizer, chats.get(p, p)) for p in prompts[a : a + size]]
            responses = _padded(ids, token_ids[a : a + size])
            with torch.no_grad():
                found = stats(model_inputs(responses, slice(None)))
            for row, mask in enumerate(responses.mask):
                logp.append(found.logp[row][mask].double().numpy())
                entropy.append(found.entropy[row][mask].double().numpy())
        return logp, entropy

    return Rescorer(
        step=int(path.name.removeprefix("step-")),
        vocab=int(model.get_output_embeddings().weight.shape[0]),
        score=score,
        text=lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=True),
    )


def skeleton(config: Config) -> tuple[Any, Any]:
    """The model to load weights into; the one made here needs no warm-up for that."""
    if config.model.path:
        return load_model(config)
    task = worked_task(make_task(config.task.name, **config.task.params))
    tokenizer = character_tokenizer(task.alphabet)
    return new_model(config, tokenizer).eval(), tokenizer


def _padded(prompts: Sequence[Sequence[int]], token_ids: Sequence[NDArray]) -> Responses:
    """Prompts padded on the left, responses on the right, as the trainer lays them out."""
    size, width = len(prompts), max(len(p) for p in prompts)
    length = max(len(t) for t in token_ids)
    prompt_id = torch.zeros(size, width, dtype=torch.long)
    prompt_mask = torch.zeros(size, width, dtype=torch.bool)
    token_id = torch.zeros(size, length, dtype=torch.long)
    mask = torch.zeros(size, length, dtype=torch.bool)
    for row, (prompt, tokens) in enumerate(zip(prompts, token_ids, strict=True)):
        prompt_id[row, width - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[row, width - len(prompt) :] = True
        token_id[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        mask[row, : len(tokens)] = True
    return Responses(prompt_id, prompt_mask, token_id, mask, torch.zeros(size, dtype=torch.bool))
