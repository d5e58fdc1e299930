"""Local and visitation term of a response's entropy, on a policy whose responses can be counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from entropy_lab.stats import ResponseTerms, response_terms
from enumerable import MASK, TOKENS, draw, moved, policy, theta

START, ALONG = theta(0), theta(1)
OLD = moved(START, theta(2), 0.3)  # what sampled the responses of age > 0
STEP = 1e-3


def togo(entropy: Tensor) -> Tensor:
    """H_togo_u as the definition has it, position by position."""
    size = entropy.shape[-1]
    return torch.stack([entropy[..., u + 1 :].sum(-1) for u in range(size)], -1)


def all_pairs(by: float, group: Tensor | None, sampler: Tensor, prompts: tuple[int, int]):
    """E[local], E[visitation] of what the function gives for two responses sampled by `sampler`.

    Every pair of responses is one call, so its own response is all that a baseline could leave
    out wrongly. Sequence ratios to `sampler` weight the values of the first response.
    """
    now, later = policy(START), policy(moved(START, ALONG, by))
    count, (a, b) = len(TOKENS), prompts
    total = torch.zeros(2, dtype=torch.float64)
    for i in range(count):
        for j in range(count):
            at = [a, b], [i, j]
            terms = response_terms(
                MASK[[i, j]],
                now.entropy[at],
                later.entropy[at] - now.entropy[at],
                later.logp[at] - now.logp[at],
                group,
            )
            chance = sampler[a, i] * sampler[b, j] * now.chance[a, i] / sampler[a, i]
            total += chance * torch.stack([terms.local[0], terms.visitation[0]])
    return total


def change(by: float, prompt: int) -> Tensor:
    now, later = policy(START), policy(moved(START, ALONG, by))
    before, after = (p.chance * p.entropy.sum(2) for p in (now, later))
    return (after - before).sum(1)[prompt]


def test_the_responses_are_all_there_are() -> None:
    now = policy(START)
    assert len(TOKENS) == 1 + 2 + 4 + 8 * 3
    torch.testing.assert_close(now.chance.sum(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("group", "prompts"), [([7, 7], (0, 0)), ([7, 8], (0, 1)), (None, (1, 0))],
    ids=["group", "strangers", "no groups"],
)  # fmt: skip
@pytest.mark.parametrize("age", [0, 1])
def test_local_and_visitation_are_the_whole_change_to_first_order(group, prompts, age) -> None:
    """A tenth of the step leaves a hundredth of the error; without visitation a tenth."""
    sampler = policy(OLD if age else START).chance
    error, without = [], []
    for by in (STEP, STEP / 10):
        index = None if group is None else torch.tensor(group)
        local, visitation = all_pairs(by, index, sampler, prompts)
        true = change(by, prompts[0])
        error.append(float((true - local - visitation).abs()))
        without.append(float((true - local).abs() / true.abs()))
    assert 80 < error[0] / error[1] < 125
    assert error[1] < 1e-3 * abs(change(STEP / 10, prompts[0]))
    assert min(without) > 0.1 and 0.9 < without[0] / without[1] < 1.1


def test_the_mean_over_the_whole_group_shrinks_the_term() -> None:
    """Exactly by 1 - 1/G where finished responses count as zeros: why a response is left out."""
    now, later = policy(START), policy(moved(START, ALONG, STEP))
    chance, push = now.chance[0], (later.logp - now.logp)[0]
    left = togo(now.entropy[0])
    for size in (2, 8):
        others = (chance[:, None] * left).sum(0)  # their mean has this expectation
        b = (left + (size - 1) * others) / size
        plain = (chance[:, None] * push * (left - b)).sum()
        whole = (chance[:, None] * push * (left - others)).sum()
        assert float(plain / whole) == pytest.approx(1 - 1 / size, rel=1e-9)


# --- sampled groups ----------------------------------------------------------------------------


def sampled(seed: int, groups: int, size: int, sampler: Tensor, by: float, weigh: bool = True):
    """(terms of sampled groups, sum dlogp H_togo without any baseline)."""
    now, later = policy(START), policy(moved(START, ALONG, by))
    prompt, picked = draw(sampler, groups, size, seed)
    at = prompt, picked
    ratio = (now.chance[at] / sampler[at]).log() if weigh else None
    terms = response_terms(
        MASK[picked],
        now.entropy[at],
        later.entropy[at] - now.entropy[at],
        later.logp[at] - now.logp[at],
        torch.arange(groups).repeat_interleave(size),
        ratio,
    )
    bare = ((later.logp - now.logp)[at] * togo(now.entropy[at])).sum(1)
    return terms, bare


def expected(by: float) -> tuple[float, float]:
    """E[local] and E[visitation] by summing over all responses, mean over prompts."""
    now, later = policy(START), policy(moved(START, ALONG, by))
    local = (now.chance * (later.entropy - now.entropy).sum(2)).sum(1).mean()
    push = ((later.logp - now.logp) * togo(now.entropy)).sum(2)
    return float(local), float((now.chance * push).sum(1).mean())


def interval(values: list[float]) -> tuple[float, float, float]:
    x = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * x.std() / math.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half), float(x.std())


@pytest.mark.parametrize("age", [0, 1])
def test_intervals_of_sampled_groups_cover_the_exact_terms(age: int) -> None:
    sampler = policy(OLD if age else START).chance
    found, bare, blind = [], [], []
    for seed in range(400):
        terms, plain = sampled(seed, 32, 8, sampler, 1e-5)
        found.append(terms.means())
        weight = terms.weight / terms.weight.sum()
        bare.append(float((weight * plain).sum()))
        blind.append(sampled(seed, 32, 8, sampler, 1e-5, weigh=False)[0].means()[1])
    for values, true in zip(zip(*found, strict=True), expected(1e-5), strict=True):
        low, high, _ = interval(list(values))
        assert low < true < high
        assert high - low < 0.2 * abs(true), "too wide to tell"
    visitation = [v for _, v in found]
    low, high, spread = interval(bare)
    assert low < expected(1e-5)[1] < high
    assert spread > 1.3 * interval(visitation)[2], "the baseline is worth 1.7 times the responses"
    low, high, _ = interval(blind)
    assert (low < expected(1e-5)[1] < high) is (age == 0), "without ratios an old policy misleads"


# --- numbers worked by hand --------------------------------------------------------------------

NAN = float("nan")
# Three responses to one prompt, of 3, 2 and 1 tokens, and one to another, of 3.
LENGTHS = [3, 2, 1, 3]
H = torch.tensor([[1.0, 2.0, 3.0], [1.0, 4.0, NAN], [1.0, NAN, NAN], [2.0, 2.0, 6.0]])
PUSH = torch.tensor([[0.1, 0.2, 0.3], [-0.1, 0.4, NAN], [0.5, NAN, NAN], [0.1, 0.1, 0.1]])
DH = torch.tensor([[0.1, 0.0, 0.2], [0.1, 0.1, NAN], [-0.3, NAN, NAN], [0.0, 0.0, 0.6]])
BY_LENGTH = torch.arange(3) < torch.tensor(LENGTHS)[:, None]
GROUP = torch.tensor([5, 5, 5, 2])


def hand(**more) -> ResponseTerms:
    return response_terms(**({"mask": BY_LENGTH, "entropy": H, "dH": DH, "dlogp": PUSH} | more))


def close(found: Tensor, values: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=0)


def test_terms_by_hand() -> None:
    """H_togo is (5, 3, 0), (4, 0), (0) and (8, 6, 0).

    Baselines at position 0: 2, 2.5 and 4.5 in the group; 3 for the lonely one, from the batch. At
    position 1: 0 and 3, the third response is not there; 1.5 for the lonely one.
    """
    terms = hand(group=GROUP)
    close(terms.local, [0.3, 0.2, -0.3, 0.6])
    first = 0.1 * (5 - 2) + 0.2 * (3 - 0) + 0.3 * (0 - 0)
    second = -0.1 * (4 - 2.5) + 0.4 * (0 - 3)
    close(terms.visitation, [first, second, 0.5 * (0 - 4.5), 0.1 * (8 - 3) + 0.1 * (6 - 1.5)])
    close(terms.weight, [1.0] * 4)
    assert terms.effective() == pytest.approx(4)


def test_without_groups_the_batch_is_the_baseline_and_a_lone_response_has_none() -> None:
    close(hand().visitation[:1], [0.1 * (5 - 4) + 0.2 * (3 - 3) + 0.3 * 0])
    one = response_terms(BY_LENGTH[:1], H[:1], DH[:1], PUSH[:1], GROUP[:1])
    close(one.visitation, [0.1 * 5 + 0.2 * 3])


def test_weights_by_hand() -> None:
    """Chances 1, 1/2, 1/4, 1 to be probed, and ratios 1, 3, 1/2, 1: weights 1, 6, 2, 1."""
    ratio = torch.tensor([1.0, 3.0, 0.5, 1.0]).double().log() + 900.0  # exp(900) is infinite
    terms = hand(group=GROUP, log_ratio=ratio, weight=torch.tensor([1.0, 2.0, 4.0, 1.0]))
    close(terms.weight * 3, [1.0, 6.0, 2.0, 1.0])
    local, visitation = terms.means()
    assert local == pytest.approx((0.3 + 6 * 0.2 - 2 * 0.3 + 0.6) / 10, rel=1e-6)
    b0 = (6 * 4 + 2 * 0) / 8, (1 * 5 + 2 * 0) / 3, (1 * 5 + 6 * 4) / 7, (5 + 24) / 9
    first = 0.1 * (5 - b0[0]) + 0.2 * 3
    second = -0.1 * (4 - b0[1]) + 0.4 * (0 - 3)
    third, last = 0.5 * (0 - b0[2]), 0.1 * (8 - b0[3]) + 0.1 * (6 - 3 / 7)
    close(terms.visitation, [first, second, third, last])
    assert visitation == pytest.approx((first + 6 * second + 2 * third + last) / 10, rel=1e-6)
    assert terms.effective() == pytest.approx(10**2 / (1 + 36 + 4 + 1))


def test_a_vanishing_ratio_beside_a_huge_one_leaves_its_baseline_exact() -> None:
    """The mean of the others is a difference of sums: it must not drown in the large weight."""
    terms = hand(group=GROUP, log_ratio=torch.tensor([800.0, -800.0, -800.0, -900.0]))
    assert float(terms.visitation[0]) == pytest.approx(0.1 * (5 - 2) + 0.2 * 3, rel=1e-6)
    assert terms.means()[0] == pytest.approx(0.3, rel=1e-6)


def test_responses_without_tokens_or_with_a_value_that_is_not_finite_weigh_nothing() -> None:
    known = hand(group=GROUP)
    mask = torch.cat([BY_LENGTH, torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3).bool()])
    broken = torch.tensor([[NAN] * 3, [0.5, 0.5, -math.inf]])
    padded = [torch.cat([x, broken]) for x in (H, DH, PUSH)]
    group = torch.cat([GROUP, torch.tensor([5, 5])])
    ratio = torch.tensor([0.0, 0.0, 0.0, 0.0, 99.0, 99.0])
    terms = response_terms(mask, *padded, group, ratio)
    close(terms.weight, [1.0] * 4 + [0.0] * 2)
    torch.testing.assert_close(terms.visitation[:4], known.visitation, rtol=0, atol=0)
    assert terms.means() == pytest.approx(known.means(), rel=1e-12)
    nothing = response_terms(torch.zeros(2, 3, dtype=torch.bool), *(x[:2] for x in (H, DH, PUSH)))
    assert all(map(math.isnan, (*nothing.means(), nothing.effective())))


@pytest.mark.parametrize("name", ["group", "log_ratio", "weight"])
def test_one_value_per_token_where_one_per_response_is_asked_for_is_named(name: str) -> None:
    message = rf"{name} has shape \(4, 3\) but mask has \(4, 3\): pass one {name} per response"
    with pytest.raises(ValueError, match=message):
        hand(**{name: torch.ones(4, 3)})
