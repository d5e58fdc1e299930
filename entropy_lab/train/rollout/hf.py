"""Rollouts in the trainer's own process: the prompt of a group is read once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from entropy_lab.train.randomness import seeded
from entropy_lab.train.rollout.base import Responses, end_tokens, left_pad
from entropy_lab.train.rollout.sampling import generate, sample


@dataclass(frozen=True)
class HFEngine:
    """Samples from softmax(logits / temperature) over the whole vocabulary, in this process.

    logp: report the log-probabilities of sampled tokens, as sampling computed them; never of
    evaluations with top_p < 1 or temperature 0.
    """

    logp: bool = False

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        prompts: list[list[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        top_p: float = 1.0,
        share: slice | None = None,
    ) -> Responses:
        """n responses to each prompt (token ids); see `RolloutEngine`.

        share: answer these prompts alone, as they would be answered among all of them.
        Ends at any of the model's EOS tokens. Raises ValueError for an empty prompt.
        """
        with (
            _sampling(model, max_tokens, temperature, top_p) as settings,
            seeded(seed, model.device),
        ):
            prompt_id, prompt_mask = left_pad(prompts, settings.pad_token_id, model.device)
            within = None
            if share is not None:
                within = (share.start, len(prompt_id))
                prompt_id, prompt_mask = prompt_id[share], prompt_mask[share]
            if temperature > 0 and top_p == 1:
                told = self.logp
                token_id, logp = sample(
                    model, prompt_id, prompt_mask, n, settings, told, within
                )  # (B, T)
            else:
                token_id, logp = generate(model, prompt_id, prompt_mask, n, settings)
        prompt_id = prompt_id.repeat_interleave(n, dim=0)  # (B, P)
        prompt_mask = prompt_mask.repeat_interleave(n, dim=0)
        ends = torch.isin(token_id, torch.tensor(settings.eos_token_id, device=token_id.device))
        mask = ends.long().cumsum(dim=1) - ends.long() == 0
        return Responses(prompt_id, prompt_mask, token_id, mask, ~ends.any(dim=1), logp)

    @property
    def tolerance(self) -> float:
        """No bound: the trainer's own model samples."""
        return float("inf")

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def _sampling(model: Any, max_tokens: int, temperature: float, top_p: float) -> Iterator[Any]:
    """Plain sampling settings, with the model in eval mode and its own settings set aside."""
    from transformers import GenerationConfig

    own = model.generation_config
    eos, pad = end_tokens(model)
    drawn = {"temperature": temperature, "top_k": 0, "top_p": top_p} if temperature else {}
    settings = GenerationConfig(
        do_sample=temperature != 0,
        **drawn,
        max_new_tokens=max_tokens,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    flags = [(module, module.training) for module in model.modules()]
    # generate() fills unset fields from the model: a shipped repetition penalty or top_k would
    # sample from another policy than the one that is scored.
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield settings
    finally:
        model.generation_config = own
        for module, training in flags:
            module.training = training
