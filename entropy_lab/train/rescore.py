"""A run's newest checkpoint as a scorer of prompts and responses, for `entropy-lab doctor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from entropy_lab.errors import RunError
from entropy_lab.record import open_run
from entropy_lab.train.checkpoint import latest_checkpoint, load_checkpoint
from entropy_lab.train.config import config_from_dict
from entropy_lab.train.launch import is_ours, restored
from entropy_lab.train.layout import Widths
from entropy_lab.train.model import skeleton
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.rollout import Responses
from entropy_lab.train.tasks import make_task

Scores = tuple[list[NDArray], list[NDArray]]


class Rescorer(NamedTuple):
    """step: optimizer steps taken; vocab: size of the softmax; score(prompts, token_ids) ->
    (logp, entropy), arrays (T,) in nats for each response; text(token_id) decodes one.

    score_as(prompts, token_ids, layout): the same in given micro-batches, (rows, prompt width,
    response width) each. With all rows of those of the run the numbers are its own, bit for bit.
    """

    step: int
    vocab: int
    score: Callable[[Sequence[str], Sequence[NDArray]], Scores]
    text: Callable[[NDArray], str]
    score_as: Callable[[Sequence[str], Sequence[NDArray], Sequence[tuple[int, int, int]]], Scores]


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
    t, train = config.rollout.temperature, config.train
    stats = make_score(model, t, config.model.autocast, train.tiled_head)
    # No prompt is measured: all of them are wanted, those left out for their length as well.
    chats = make_task(config.task.name, **config.task.params).source(lambda prompt: []).chats

    limit = config.rollout.max_prompt_tokens

    def score_as(
        prompts: Sequence[str],
        token_ids: Sequence[NDArray],
        layout: Sequence[tuple[int, int, int]],
    ) -> Scores:
        logp, entropy, first = [], [], 0
        for widths in (Widths(*w) for w in layout):
            rows = slice(first, first + widths.rows)
            first = rows.stop
            # What a run did not cut is not longer than its limit.
            ids = [encode_prompt(tokenizer, chats.get(p, p))[-limit:] for p in prompts[rows]]
            responses = _padded(ids, token_ids[rows], widths, model.device)
            with torch.no_grad():
                found = stats(model_inputs(responses))
            for row, mask in enumerate(responses.mask):
                logp.append(found.logp[row][mask].double().cpu().numpy())
                entropy.append(found.entropy[row][mask].double().cpu().numpy())
        return logp, entropy

    def score(prompts: Sequence[str], token_ids: Sequence[NDArray]) -> Scores:
        size = config.train.micro_batch
        rows = [len(prompts[a : a + size]) for a in range(0, len(prompts), size)]
        return score_as(prompts, token_ids, [(n, 0, 0) for n in rows])

    return Rescorer(
        step=int(path.name.removeprefix("step-")),
        vocab=int(model.get_output_embeddings().weight.shape[0]),
        score=score,
        text=lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=True),
        score_as=score_as,
    )


def _padded(
    prompts: Sequence[Sequence[int]],
    token_ids: Sequence[NDArray],
    widths: Widths,
    device: torch.device,
) -> Responses:
    """Prompts padded on the left, responses on the right, as the trainer lays them out, to these
    widths at least."""
    size, width = len(prompts), max(widths.prompt, *(len(p) for p in prompts))
    length = max(widths.response, *(len(t) for t in token_ids))
    prompt_id = torch.zeros(size, width, dtype=torch.long)
    prompt_mask = torch.zeros(size, width, dtype=torch.bool)
    token_id = torch.zeros(size, length, dtype=torch.long)
    mask = torch.zeros(size, length, dtype=torch.bool)
    for row, (prompt, tokens) in enumerate(zip(prompts, token_ids, strict=True)):
        prompt_id[row, width - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[row, width - len(prompt) :] = True
        token_id[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        mask[row, : len(tokens)] = True
    truncated = torch.zeros(size, dtype=torch.bool)
    fields = (prompt_id, prompt_mask, token_id, mask, truncated)
    return Responses(*(x.to(device) for x in fields))
