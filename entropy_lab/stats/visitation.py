"""How a step changed the entropy of whole responses: where they stand, and where they go instead.

J = E[sum_t H_t] over responses of the policy, H_t the entropy at the state s_t that the response
is in. A step changes H at given states and, since other tokens are sampled, the states as well:
    dJ = E[sum_t dH_t] + E[sum_u dlogp_u (H_togo_u - b_u)] + second order,  H_togo_u = sum_{t>u} H_t
(score function; H up to u is settled before the token u is). Any b_u that does not depend on the
token u keeps the expectation to first order, because E[dlogp_u | s_u] = -KL is of second order.
At real steps b_u is needed all the same: without it -KL H_togo_u adds up to more than the term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# Sequence ratios further below the largest one count as if they were here, 2e-9 of it: a mean of
# the other responses is a difference of sums, which stays exact to 1e-7 in float64.
_LEAST_LOG_RATIO = -20.0


@dataclass(frozen=True)
class ResponseTerms:
    """The two terms of each response, nats per response, and its weight; all (B,) float64.

    local = sum_t dH_t; visitation = sum_u dlogp_u (H_togo_u - b_u); weight: 0 for a response
    without tokens, else its given weight times its sequence ratio (scaled to at most 1).
    """

    local: Float[Tensor, " B"]
    visitation: Float[Tensor, " B"]
    weight: Float[Tensor, " B"]

    def means(self) -> tuple[float, float]:
        """(local, visitation), means over responses by weight: sum w x / sum w; NaN if all w = 0.

        Self-normalised: with sequence ratios biased by O(1 / responses), but a ratio that misses
        its mean of 1 by chance does not rescale the terms.
        """
        total = self.weight.sum()
        local, visitation = (self.weight * x for x in (self.local, self.visitation))
        return float(local.sum() / total), float(visitation.sum() / total)

    def effective(self) -> float:
        """(sum w)^2 / sum w^2: equally weighted responses that would be worth as much."""
        return float(self.weight.sum() ** 2 / self.weight.square().sum())


def response_terms(
    mask: Bool[Tensor, "B T"],
    entropy: Float[Tensor, "B T"],
    dH: Float[Tensor, "B T"],
    dlogp: Float[Tensor, "B T"],
    group: Int[Tensor, " B"] | None = None,
    log_ratio: Float[Tensor, " B"] | None = None,
    weight: Float[Tensor, " B"] | None = None,
) -> ResponseTerms:
    """Local and visitation term of each response: sum dH, and sum dlogp (H_togo - b).

    b_iu is the weighted mean of H_togo_ju over the *other* responses j of i's group that have a
    token at u; where there is none, over all other responses of the batch that have one; where
    there is none either, 0. Leaving i out matters: i's own H_togo depends on its token u, and the
    mean over all G shrinks the term by 1 - 1/G (as for rewards, RLOO, arXiv 2402.14740). A response
    that ends with the token u has H_togo_u = 0 and counts; one that ended earlier is not at u and
    does not: a response that has a token at u is compared with those that have one too. Either
    choice is a function of the other responses alone, hence unbiased to first order.

    mask, entropy (before the step), dH and dlogp (measured) (B, T), nats; group (B,) ids of
    prompts, None: the whole batch is one. log_ratio (B,): sum of logp - old_logp of responses that
    an older policy sampled, both taken before the step. weight (B,): 1 / inclusion probability.
    Cut responses need nothing: J is of responses with the length limit. What lies outside the mask
    may be anything, NaN included. Assumes that the step does not depend on the responses (held-out
    rows); on the step's own rows the terms hold each response's own push.
    A response with a value that is not finite at a token weighs 0, as do rows without tokens.
    Raises ValueError where group, log_ratio or weight is not (B,).
    """
    for name, x in (("group", group), ("log_ratio", log_ratio), ("weight", weight)):
        if x is not None and x.shape != mask.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)} but mask has {tuple(mask.shape)}: pass one "
                f"{name} per response, ({len(mask)},)"
            )
    mask = _scorable(mask, entropy, dH, dlogp, log_ratio)
    keep = mask.to(torch.float64)
    zero = keep.new_zeros(())
    H, change, push = (torch.where(mask, x.double(), zero) for x in (entropy, dH, dlogp))
    togo = (H.flip(1).cumsum(1).flip(1) - H) * keep  # (B, T)
    w = _weights(mask, log_ratio, weight)  # (B,)
    at = keep * w[:, None]  # (B, T)

    everyone = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
    baseline, known = _mean_of_others(togo, at, everyone)
    baseline = torch.where(known, baseline, zero)
    if group is not None:
        index = torch.unique(group, return_inverse=True)[1]
        near, known = _mean_of_others(togo, at, index)
        baseline = torch.where(known, near, baseline)
    visitation = push * (togo - baseline)  # (B, T); push is 0 outside the mask
    return ResponseTerms(change.sum(1), visitation.sum(1), w)


def _scorable(mask: Tensor, *values: Tensor | None) -> Tensor:
    """`mask` without the responses that hold anything but finite numbers at their tokens."""
    good = torch.ones_like(mask[:, 0])
    for x in values:
        if x is not None:
            x = x if x.ndim == 2 else x[:, None]
            good = good & (x.isfinite() | ~mask).all(1)
    return mask & good[:, None]


def _weights(mask: Tensor, log_ratio: Tensor | None, weight: Tensor | None) -> Tensor:
    some = mask.any(1)
    w = some.to(torch.float64)
    if weight is not None:
        w = torch.where(some, weight.double(), w)
    if log_ratio is not None:
        d = torch.where(some, log_ratio.double(), -torch.inf)
        largest = d.max() if bool(some.any()) else 0.0
        w = w * (d - largest).clamp(min=_LEAST_LOG_RATIO).exp()
    return w


def _mean_of_others(value: Tensor, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean (B, T) over the other rows of the same index (B,), and where there is one."""
    count = int(index.max()) + 1 if len(index) else 0

    def others(x: Tensor) -> Tensor:
        total = x.new_zeros(count, x.shape[1]).index_add_(0, index, x)
        return total[index] - x

    known = others((weight > 0).to(weight.dtype)) > 0.5
    return others(weight * value) / others(weight), known
