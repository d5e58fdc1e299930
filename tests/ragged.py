"""A small policy in float64 and a rollout of uneven lengths, without a trainer around them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from entropy_lab.train.gather import Rules, Scored, make_micros
from entropy_lab.train.layout import Layout
from entropy_lab.train.policy import Micro, make_score
from entropy_lab.train.randomness import seeded
from entropy_lab.train.rollout import Responses
from entropy_lab.types import TokenStats

EOS, SIZE, GROUP = 1, 12, 4


def policy() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        vocab_size=SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    with seeded(5):
        model = Qwen2ForCausalLM(shape).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape) * 0.3)
    return model


def ragged(count: int = 16) -> Scored:
    """Responses of 1 to 9 tokens to prompts of 2 to 6, with rewards that differ in each group.

    Those of more than 6 count as truncated."""
    g = torch.Generator().manual_seed(3)
    prompts = torch.tensor([2, 6, 3, 5]).repeat_interleave(GROUP)
    lengths = torch.randint(1, 10, (count,), generator=g)
    columns, steps = torch.arange(7), torch.arange(10)  # wider than any
    prompt_mask = columns >= 7 - prompts[:, None]
    mask = steps < lengths[:, None]
    ids = torch.randint(2, SIZE, (count, 17), generator=g)
    responses = Responses(
        ids[:, :7] * prompt_mask, prompt_mask, ids[:, 7:] * mask, mask, lengths > 6
    )
    reward = torch.randint(0, 2, (count,), generator=g).float()
    reward[::GROUP], reward[1::GROUP] = 0.0, 1.0
    problems, empty = [SimpleNamespace()] * 4, [""] * count
    return Scored(responses, problems, empty, reward, reward, empty, GROUP)  # type: ignore


class Plain:
    """Just enough of a Scorer."""

    def __init__(self, score: Any):
        self.score = score

    def measure(self, inputs: Any) -> TokenStats:
        with torch.no_grad():
            return self.score(inputs).detach()


def minibatches(
    model: Any, method: Any, layout: Layout, scored: Scored | None = None, **rules: Any
) -> list[list[Micro]]:
    """Two of them, of 8 responses each, at step 6 of rollout 2."""
    scorer: Any = Plain(make_score(model, 1.0))
    made = Rules(layout, groups=4, **rules)
    return make_micros(
        scored or ragged(), scorer, method, made, rollout=2, seed=7, step=6, minibatches=2
    )
