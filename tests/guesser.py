"""A policy of equal logits and an engine that answers sums right with a chance that is known."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch

from entropy_lab.probe.world import ALONE
from entropy_lab.train.config import load_config
from entropy_lab.train.rewards import RewardConfig, make_rewarder
from entropy_lab.train.rollout import Responses
from entropy_lab.train.tasks import make_task
from entropy_lab.train.tokenizer import character_tokenizer


class Flat(torch.nn.Module):
    """A policy with equal logits, so that every token has the entropy ln V; but for dropout."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.ones(vocabulary))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int, **_: Any) -> SimpleNamespace:
        logits = self.dropout(self.logits.expand(len(input_ids), logits_to_keep, -1))  # (B, T, V)
        return SimpleNamespace(logits=logits)


class Guesser:
    """Answers right with a chance that the prompt decides, and notes what it was asked."""

    def __init__(self, tokenizer: Any, task: Any) -> None:
        self.tokenizer, self.task = tokenizer, task
        self.calls: list[dict[str, Any]] = []
        self.counts: dict[str, list[int]] = {}

    def chance(self, prompt: str) -> float:
        return 0.6 if int(prompt[0]) % 2 else 0.05

    def generate(self, model: Any, prompts: list[list[int]], **asked: Any) -> Responses:
        self.calls.append({"prompts": len(prompts), **asked})
        rng, rows, texts = random.Random(asked["seed"]), [], []
        for ids in prompts:
            prompt = self.tokenizer.decode(ids)
            answer = str(sum(int(x) for x in prompt.rstrip("=").split("+")))
            drawn = [rng.random() < self.chance(prompt) for _ in range(asked["n"])]
            self.counts[prompt] = drawn
            rows += [ids] * asked["n"]
            texts += [answer if hit else "0" * (1 + len(answer)) for hit in drawn]
        encoded = [[*self.tokenizer.encode(t), self.tokenizer.eos_token_id] for t in texts]
        longest = max(map(len, encoded))
        token_id = torch.tensor([e + [0] * (longest - len(e)) for e in encoded])
        mask = torch.tensor([[i < len(e) for i in range(longest)] for e in encoded])
        prompt_id = torch.tensor(rows)
        truncated = torch.zeros(len(mask), dtype=torch.bool)
        return Responses(prompt_id, torch.ones_like(prompt_id).bool(), token_id, mask, truncated)


def guessing(*more: str) -> SimpleNamespace:
    """The parts of a run whose policy is the guesser."""
    config = load_config(None, ["task.held_out_share=0.1", "eval.every=1", *more])
    task = make_task("arithmetic", held_out_share=0.1)
    tokenizer = character_tokenizer(task.alphabet)
    model = Flat(len(tokenizer))
    return SimpleNamespace(
        config=config,
        task=task,
        source=task,
        tokenizer=tokenizer,
        model=model,
        engine=Guesser(tokenizer, task),
        rewarder=make_rewarder(RewardConfig(), task),
        world=ALONE,
    )
