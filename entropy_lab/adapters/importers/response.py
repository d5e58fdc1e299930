"""One response of a foreign log, and how a step of them becomes rows of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from entropy_lab.errors import RunError
from entropy_lab.record.schema import CORE_FLOATS, FULL_FLOATS
from entropy_lab.stats import state_hash
from entropy_lab.types import IMPORTED, NOT_SCORABLE, TRUNCATED

# What a reader may fill per token; everything else of a row is a key or cannot be in a log.
FLOATS = (*CORE_FLOATS, *(n for n in FULL_FLOATS if n != "dH_float32"))
# Log-probabilities above this are a misread column, not rounding.
_LOGP_SLACK = 1e-3


@dataclass(frozen=True)
class Response:
    """A response as its log has it; what the log does not say stays None or is left out.

    tokens (T,) int ids of the response; mask (T,) bool, the tokens that count; prompt_tokens ids
    of the prompt; columns: per-token floats (T,) by the names of our log; flags (T,) u8.
    `group` is any hashable name of the prompt group; None: responses to equal prompts.
    """

    tokens: np.ndarray | None = None
    mask: np.ndarray | None = None
    prompt_tokens: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    flags: np.ndarray | None = None
    micro: int = 0
    group: Any = None
    reward: float | None = None
    truncated: bool | None = None
    prompt: str | None = None
    response: str | None = None

    def __post_init__(self) -> None:
        if self.tokens is None:
            return
        size = len(self.tokens)
        named = {"mask": self.mask, "flags": self.flags, **self.columns}
        for name, values in named.items():
            if values is not None and np.shape(values) != (size,):
                raise RunError(
                    f"{name} has shape {np.shape(values)} beside {size} response tokens: the "
                    "lists of a response must be aligned"
                )
        for name in ("logp", "old_logp", "rollout_logp"):
            values = self.columns.get(name)
            if values is not None and size and np.nanmax([*values, -1.0]) > _LOGP_SLACK:
                raise RunError(
                    f"{name} reaches {np.nanmax(values):.3g}: a log-probability is at most 0 (a "
                    "ratio or a probability was taken for it?)"
                )

    @property
    def counted(self) -> np.ndarray:
        """(T,) bool: tokens that become rows."""
        size = 0 if self.tokens is None else len(self.tokens)
        return np.ones(size, bool) if self.mask is None else self.mask.astype(bool)


def group_numbers(responses: Sequence[Response]) -> list[int]:
    """Number of the prompt group of each response of a step, in order of appearance."""
    numbers: dict[Any, int] = {}
    found = []
    for place, response in enumerate(responses):
        name = response.group
        if name is None:
            name = _prompt_name(response)
        found.append(numbers.setdefault(("lone", place) if name is None else name, len(numbers)))
    return found


def _prompt_name(response: Response) -> Any:
    if response.prompt_tokens is not None:
        return ("ids", *map(int, response.prompt_tokens))
    return None if response.prompt is None else ("text", response.prompt)


def token_rows(
    step: int, responses: Sequence[Response], columns: Sequence[str]
) -> dict[str, np.ndarray] | None:
    """The token rows of one step with these float columns, None where it has no tokens."""
    parts = [
        _rows(step, place, response, columns)
        for place, response in enumerate(responses)
        if response.tokens is not None and response.counted.any()
    ]
    if not parts:
        return None
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(
    step: int, place: int, response: Response, columns: Sequence[str]
) -> dict[str, np.ndarray]:
    assert response.tokens is not None
    keep = response.counted
    count, blank = int(keep.sum()), np.full(len(keep), np.nan)
    floats = {n: np.asarray(response.columns.get(n, blank), np.float32)[keep] for n in columns}
    measured = [floats[name] for name in ("logp", "entropy") if name in floats]
    flags = np.zeros(count, np.uint8) if response.flags is None else response.flags[keep]
    flags = flags | np.uint8(IMPORTED | (TRUNCATED if response.truncated else 0))
    for values in measured:
        flags = np.where(np.isfinite(values), flags, flags | NOT_SCORABLE)
    return {
        "step": np.full(count, step, np.int32),
        "micro": np.full(count, response.micro, np.int16),
        "uid": np.full(count, uid(step, place), np.int64),
        "pos": np.flatnonzero(keep).astype(np.int32),
        "token_id": response.tokens[keep].astype(np.int32),
        "state": _states(response)[keep],
        "age": np.zeros(count, np.uint8),
        "flags": flags.astype(np.uint8),
        **floats,
    }


def _states(response: Response) -> np.ndarray:
    """(T,) int64; zeros where the prompt's tokens are unknown."""
    assert response.tokens is not None
    if response.prompt_tokens is None:
        return np.zeros(len(response.tokens), np.int64)
    prompt = torch.as_tensor(np.asarray(response.prompt_tokens, np.int64))[None]
    tokens = torch.as_tensor(np.asarray(response.tokens, np.int64))[None]
    return state_hash(prompt, torch.ones_like(prompt, dtype=torch.bool), tokens)[0].numpy()


def sample_rows(step: int, responses: Sequence[Response]) -> dict[str, list[Any]]:
    """One row of samples/ for each response of a step."""
    groups = group_numbers(responses)
    lengths = [int(r.counted.sum()) if r.tokens is not None else None for r in responses]
    return {
        "step": [step] * len(responses),
        "rollout": [step] * len(responses),
        "group": [uid(step, g) for g in groups],
        "uid": [uid(step, place) for place in range(len(responses))],
        "reward": [r.reward for r in responses],
        "advantage": [_mean(r, "advantage") for r in responses],
        "length": lengths,
        "truncated": [r.truncated for r in responses],
        "inclusion_prob": [1.0 if n else None for n in lengths],
        "trained": [bool(n) if n is not None else None for n in lengths],
        "prompt": [r.prompt for r in responses],
        "response": [r.response for r in responses],
    }


def step_means(responses: Sequence[Response]) -> dict[str, float | None]:
    """What a step's line of metrics.jsonl can say: reward, entropy means, number of tokens."""
    rewards = [r.reward for r in responses if r.reward is not None]
    entropies = [e for r in responses if (e := _kept(r, "entropy")) is not None and len(e)]
    flat = np.concatenate(entropies) if entropies else np.empty(0)
    return {
        "reward": float(np.mean(rewards)) if rewards else None,
        "entropy_token_mean": float(np.nanmean(flat)) if len(flat) else None,
        "entropy_seq_mean": float(np.mean([np.nanmean(e) for e in entropies]))
        if len(flat)
        else None,
        "n_tokens": int(sum(r.counted.sum() for r in responses)),
    }


def _kept(response: Response, name: str) -> np.ndarray | None:
    values = response.columns.get(name)
    return None if values is None else np.asarray(values, np.float64)[response.counted]


def _mean(response: Response, name: str) -> float | None:
    values = _kept(response, name)
    return float(np.nanmean(values)) if values is not None and len(values) else None


def uid(step: int, place: int) -> int:
    """Response or group number `place` of an imported step."""
    return (step << 32) | place
