"""A policy over so few responses that every expectation is a sum, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

V, T, END = 3, 4, 0  # tokens, longest response, the token that ends one
PROMPTS = 2
Theta = dict[str, Tensor]


def responses() -> tuple[Tensor, Tensor]:
    """Every response: tokens and mask (31, T). Those without an end token are cut at T."""
    found = []
    for length in range(1, T + 1):
        for tokens in product(range(V), repeat=length):
            ended = tokens[-1] == END or length == T
            if ended and END not in tokens[:-1]:
                found.append(tokens)
    mask = torch.tensor([[t < len(r) for t in range(T)] for r in found])
    return torch.tensor([[*r, *[END] * (T - len(r))] for r in found]), mask


TOKENS, MASK = responses()


def theta(seed: int, size: float = 1.0) -> Theta:
    """Parameters, or a direction to move them in: normal with standard deviation `size`."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"token": (V + 1, 6), "place": (T, 6), "prompt": (PROMPTS, 6), "head": (6, V)}
    return {k: size * torch.randn(s, generator=g, dtype=torch.float64) for k, s in shapes.items()}


def moved(start: Theta, along: Theta, by: float) -> Theta:
    return {k: v + by * along[k] for k, v in start.items()}


@dataclass(frozen=True)
class Exact:
    """The policy at some parameters: (PROMPTS, responses[, T]), zero outside the mask."""

    logp: Tensor
    entropy: Tensor
    chance: Tensor  # of the whole response

    def total_entropy(self) -> Tensor:
        """E[sum_t H_t], mean over prompts, by summing over all responses."""
        return (self.chance * self.entropy.sum(2)).sum(1).mean()


def policy(at: Theta) -> Exact:
    """Logits from the two tokens before, the position and the prompt, through one tanh."""
    before = torch.cat([torch.full((len(TOKENS), 1), V), TOKENS[:, :-1]], 1)
    x = at["token"][before] + at["place"] + at["prompt"][:, None, None]  # (PROMPTS, R, T, 6)
    x = x + torch.cat([torch.zeros_like(x[:, :, :1]), torch.tanh(x[:, :, :-1])], 2)
    logpi = (torch.tanh(x) @ at["head"]).log_softmax(-1)
    index = TOKENS[None, :, :, None].expand(PROMPTS, -1, -1, 1)
    logp = torch.where(MASK, logpi.gather(-1, index)[..., 0], 0.0)
    entropy = torch.where(MASK, -(logpi.exp() * logpi).sum(-1), 0.0)
    return Exact(logp, entropy, logp.sum(2).exp())


def draw(chance: Tensor, groups: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Prompt and response number, both (groups * size,): `groups` per prompt in turn."""
    g = torch.Generator().manual_seed(seed)
    prompt = torch.arange(groups) % PROMPTS
    picked = torch.multinomial(chance[prompt], size, replacement=True, generator=g)
    return prompt.repeat_interleave(size), picked.flatten()
