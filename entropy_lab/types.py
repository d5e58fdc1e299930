"""The field names of entropy-lab: everything that is known about the tokens of one minibatch.

Shape legend: B responses, T response positions, V vocabulary entries, N valid tokens (mask is
true). One token row is the position that *predicts* `token_id`.
Units: entropies, log-probabilities and their changes are in nats, per token. All of them belong
to softmax(logits / temperature), the policy that sampled. Signs: `dH > 0` means entropy rose;
`grad_logp > 0` means the loss pushes the sampled token up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Int64

    # One number for each token, or one for all of them.
    PerToken = Float[Tensor, "B T"] | Float[Tensor, ""] | float

Normaliser = Literal["token_mean", "selected_mean", "seq_mean", "constant"]
RatioLevel = Literal["token", "sequence"]

# Bits of the `flags` column (u8).
CLIPPED_HIGH = 1
CLIPPED_LOW = 2
DUAL_CLIPPED = 4
SELECTED = 8
TRUNCATED = 16
HELD_OUT = 32
IMPORTED = 64
NOT_SCORABLE = 128


class _Rows:
    """Row selection shared by the dataclasses below: every tensor is (B, ...)."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Apply `fn` to every tensor field and keep the rest."""
        changed = {
            f.name: fn(getattr(self, f.name))
            for f in fields(self)  # type: ignore[arg-type]
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)  # type: ignore[type-var]

    def rows(self, index: Int[Tensor, " rows"] | Bool[Tensor, " B"] | slice) -> Self:
        """The responses chosen by `index` (B',), in that order; scalars stay as they are."""
        return self.map(lambda x: x[index] if x.ndim else x)

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Concatenate along B; (B, T) tensors are right-padded with zeros to the longest T.

        A field that one part lacks is lacking in the result; scalars are the first part's.
        """
        merged: dict[str, Any] = {}
        for f in fields(cls):  # type: ignore[arg-type]
            values = [getattr(p, f.name) for p in parts]
            if any(v is None for v in values):
                merged[f.name] = None
            elif isinstance(values[0], Tensor) and values[0].ndim:
                merged[f.name] = torch.cat(_pad_to_longest(values))
            else:
                merged[f.name] = values[0]
        return cls(**merged)


def _pad_to_longest(tensors: list[Tensor]) -> list[Tensor]:
    if tensors[0].ndim < 2:
        return tensors
    longest = max(t.shape[1] for t in tensors)
    return [torch.nn.functional.pad(t, (0, longest - t.shape[1])) for t in tensors]


@dataclass(frozen=True)
class TokenBatch(_Rows):
    """What is fixed about some responses before the update: detached, on one device.

    token_id (B, T) int64 sampled tokens; mask (B, T) bool, true where a token counts;
    advantage (B, T) float; old_logp (B, T) float, nats, of the policy that generated.
    Optional: old_entropy (B, T), rollout_logp (B, T) the sampler's own value, state (B, T) int64
    hash of prompt and prefix, uid (B,) int64, group (B,) int64, reward (B,) float,
    truncated (B,) bool, rollout_weight (B, T) factor on the token's policy-gradient loss that
    makes up for another sampler, whatever the method; influence_marginal (B, T) nats per unit of
    the token's weight, known only of a step that is about to be taken. age: optimizer steps since
    the rollout; step: the optimizer step and seed: the run's seed (hashed random choices use both).
    """

    token_id: Int64[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    advantage: Float[Tensor, "B T"]
    old_logp: Float[Tensor, "B T"]
    old_entropy: Float[Tensor, "B T"] | None = None
    rollout_logp: Float[Tensor, "B T"] | None = None
    state: Int64[Tensor, "B T"] | None = None
    uid: Int64[Tensor, " B"] | None = None
    group: Int64[Tensor, " B"] | None = None
    reward: Float[Tensor, " B"] | None = None
    truncated: Bool[Tensor, " B"] | None = None
    rollout_weight: Float[Tensor, "B T"] | None = None
    influence_marginal: Float[Tensor, "B T"] | None = None
    age: int = 0
    step: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        shape = self.token_id.shape
        per_token = ("mask", "advantage", "old_logp", "old_entropy", "rollout_logp", "state")
        for name in (*per_token, "rollout_weight", "influence_marginal"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"TokenBatch.{name} has shape {tuple(value.shape)} but token_id has "
                    f"{tuple(shape)}: every per-token field must be (B, T)"
                )
        if self.mask.dtype != torch.bool:
            raise TypeError(
                f"TokenBatch.mask must be bool, got {self.mask.dtype}: pass mask.bool()"
            )


@dataclass(frozen=True)
class TokenStats(_Rows):
    """Five numbers per position that replace the logits; all (B, T) float, nats.

    logp = log pi(token), entropy = -sum pi log pi, m0 = sum pi^2, m1 = sum pi^2 log pi,
    m2 = sum pi^2 (log pi)^2. `logp` and `entropy` may carry gradients; the moments never do.
    """

    logp: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    m0: Float[Tensor, "B T"]
    m1: Float[Tensor, "B T"]
    m2: Float[Tensor, "B T"]

    def detach(self) -> TokenStats:
        return self.map(Tensor.detach)


@dataclass(frozen=True)
class TokenGrad(_Rows):
    """How the loss of the whole optimizer step leans on each token; (B, T) float.

    grad_logp = c = -dL/dlogp, grad_entropy = e = -dL/dentropy, as they reach the gradient clip.
    """

    grad_logp: Float[Tensor, "B T"]
    grad_entropy: Float[Tensor, "B T"]


@dataclass(frozen=True)
class TokenPlan(_Rows):
    """What a method does to each token; scalars or detached (B, T) tensors.

    weight: factor on the token's policy-gradient loss. mask: false drops that loss (the token
    stays in the denominator unless normaliser is `selected_mean`).
    clip_low, clip_high: the ratio's interval is [1 - clip_low, 1 + clip_high]; inf switches off.
    beyond_low, beyond_high: beta; beyond the interval c = beta * bound * A (0 PPO, 1 and 1 GPPO).
    both_sides: clip whatever the sign of A, value sg(clip(r)) A logp (CISPO).
    dual_clip: for A < 0 the value is at least dual_clip * A; inf switches off.
    abs_kl_coef: adds abs_kl_coef * |logp - old_logp| to the token's loss, after the weight.
    entropy_coef: subtracts entropy_coef * (mean entropy) from the loss.
    normaliser: token_mean 1/N; selected_mean 1/N of the tokens with mask; seq_mean the mean over
    responses of their token means; constant 1/(B * constant_length).
    ratio_level: token, or sequence (the geometric-mean ratio of GSPO).
    selected: (B, T) bool, tokens that the method picked out; only written to the log.
    omega: (B, T), the score that drove the choice; only diagnosed.
    scalars: what the method wants logged for the step.
    """

    weight: PerToken = 1.0
    mask: Bool[Tensor, "B T"] | bool = True
    clip_low: PerToken = float("inf")
    clip_high: PerToken = float("inf")
    beyond_low: PerToken = 0.0
    beyond_high: PerToken = 0.0
    both_sides: bool = False
    dual_clip: PerToken = float("inf")
    abs_kl_coef: PerToken = 0.0
    entropy_coef: PerToken = 0.0
    normaliser: Normaliser = "token_mean"
    constant_length: int | None = None
    ratio_level: RatioLevel = "token"
    selected: Bool[Tensor, "B T"] | None = None
    omega: Float[Tensor, "B T"] | None = None
    scalars: dict[str, float] | None = None
