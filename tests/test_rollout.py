"""Rollouts: the sampled distribution, padding, EOS, and what is left untouched."""

from __future__ import annotations

import sys

import pytest
import torch
from scipy.stats import chisquare

from entropy_lab.train.config import Config
from entropy_lab.train.randomness import seeded
from entropy_lab.train.rollout import ENGINES, HFEngine, Responses, VLLMEngine
from entropy_lab.train.settings import VllmConfig
from tiny_models import rough_qwen2

EOS, PAD, SIZE = 1, 0, 12


@pytest.fixture(scope="module")
def policy():
    model = rough_qwen2(
        0.2, vocab_size=SIZE, hidden_size=32, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.no_grad():
        model.model.norm.weight.fill_(0.6)
    return model


PROMPTS = [[5, 6, 7, 8], [9, 4], [3, 3, 3, 5, 2, 11, 10]]


def sample(model, prompts=PROMPTS, n=4, max_tokens=10, temperature=1.0, seed=0) -> Responses:
    return HFEngine().generate(model, prompts, n, max_tokens, temperature, seed)


def test_rows_follow_their_prompts_left_padded(policy) -> None:
    out = sample(policy)
    assert out.prompt_id.shape == (12, 7) and out.prompt_mask.dtype == torch.bool
    for row, (ids, kept) in enumerate(zip(out.prompt_id, out.prompt_mask, strict=True)):
        prompt = PROMPTS[row // 4]
        assert ids[kept].tolist() == prompt and kept[-len(prompt) :].all()
        assert (ids[~kept] == PAD).all() and kept.sum() == len(prompt)


@pytest.mark.parametrize("max_tokens", [1, 4, 30])
def test_the_mask_ends_with_the_first_eos(policy, max_tokens: int) -> None:
    out = sample(policy, n=40, max_tokens=max_tokens, seed=2)
    assert out.token_id.dtype == torch.int64 and out.mask.shape == out.token_id.shape
    assert out.token_id.shape[1] <= max_tokens
    for ids, mask, truncated in zip(out.token_id.tolist(), out.mask, out.truncated, strict=True):
        length = ids.index(EOS) + 1 if EOS in ids else max_tokens
        assert mask.tolist() == [i < length for i in range(len(ids))]
        assert bool(truncated) == (EOS not in ids)
        assert set(ids[length:]) <= {PAD}
    assert out.truncated.any() or max_tokens == 30
    assert not out.truncated.all()


def test_a_pure_function_of_weights_and_seed(policy) -> None:
    torch.manual_seed(0)
    first = sample(policy, seed=7)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second, other = sample(policy, seed=7), sample(policy, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("prompt_id", "prompt_mask", "token_id", "mask", "truncated"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert not torch.equal(first.token_id, other.token_id)


def test_training_flags_and_settings_come_back(policy) -> None:
    policy.eval()
    policy.model.layers[1].train()
    flags = [m.training for m in policy.modules()]
    settings = policy.generation_config
    sample(policy)
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        sample(policy, prompts=[[3], []])
    with pytest.raises(ValueError):
        sample(policy, temperature=-1.0)
    assert [m.training for m in policy.modules()] == flags
    assert policy.generation_config is settings
    policy.eval()


def conditional(model, prompt: list[int], temperature: float) -> torch.Tensor:
    """p(token | prompt) without cache, batch or padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    return (logits / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("prompts", [PROMPTS, [[4], [5, 6]]], ids=["cached", "one token"])
def test_tokens_come_from_the_whole_softmax(policy, prompts, temperature: float) -> None:
    n = 4000
    out = sample(policy, prompts, n=n, max_tokens=2, temperature=temperature, seed=1)
    for i, prompt in enumerate(prompts):
        first, second = out.token_id[i * n : (i + 1) * n].T
        likely = int(first.mode().values)
        assert likely != EOS
        following = second[first == likely]
        for drawn, context in ((first, prompt), (following, [*prompt, likely])):
            expected = conditional(policy, context, temperature).numpy() * len(drawn)
            counts = torch.bincount(drawn, minlength=SIZE).numpy()
            common = expected >= 5
            pooled = [*counts[common], counts[~common].sum()]
            target = [*expected[common], expected[~common].sum()]
            if target[-1] < 1e-9:
                pooled, target = pooled[:-1], target[:-1]
            assert chisquare(pooled, target).pvalue > 1e-4


def test_cold_sampling_is_the_argmax_of_plain_forwards(policy) -> None:
    out = sample(policy, n=1, max_tokens=8, temperature=1e-5)
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        while len(text) < len(prompt) + 8 and text[len(prompt) :][-1:] != [EOS]:
            text.append(int(conditional(policy, text, 1.0).argmax()))
        assert out.token_id[row][out.mask[row]].tolist() == text[len(prompt) :]


def test_the_model_s_own_sampling_settings_do_not_leak(policy) -> None:
    from transformers import GenerationConfig

    plain, own = sample(policy, n=30), policy.generation_config
    policy.generation_config = GenerationConfig(
        eos_token_id=EOS, pad_token_id=PAD, do_sample=True, temperature=0.1, top_k=2, top_p=0.5,
        repetition_penalty=3.0, no_repeat_ngram_size=1, min_new_tokens=5, min_p=0.3,
        suppress_tokens=[4],
    )  # fmt: skip
    try:
        assert torch.equal(sample(policy, n=30).token_id, plain.token_id)
    finally:
        policy.generation_config = own


def test_any_of_several_eos_tokens_ends_a_response(policy) -> None:
    from transformers import GenerationConfig

    own = policy.generation_config
    policy.generation_config = GenerationConfig(eos_token_id=[EOS, 7], pad_token_id=PAD)
    try:
        out = sample(policy, n=40, max_tokens=12)
    finally:
        policy.generation_config = own
    last = out.token_id.gather(1, out.mask.sum(1, keepdim=True) - 1)[:, 0]
    assert set(last[~out.truncated].tolist()) == {EOS, 7}
    inside = out.mask.clone()
    inside.scatter_(1, out.mask.sum(1, keepdim=True) - 1, False)
    assert not torch.isin(out.token_id[inside], torch.tensor([EOS, 7])).any()


def test_the_registry_names_the_engine() -> None:
    assert ENGINES["hf"](Config()) == HFEngine()
    assert isinstance(ENGINES["vllm"](Config(vllm=VllmConfig(python=sys.executable))), VLLMEngine)


def test_seeded_restores_the_state_even_after_an_error() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(1):
        first = torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)
    with seeded(2):
        assert not torch.equal(torch.rand(3), first)


def test_temperature_zero_takes_the_likeliest_token_each_time(policy) -> None:
    out = HFEngine().generate(policy, PROMPTS, 1, 10, 0.0, 0)
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for token in out.token_id[row][out.mask[row]].tolist():
            assert token == int(conditional(policy, ids, 1.0).argmax())
            ids.append(token)


@pytest.mark.parametrize("top_p", [0.3, 0.8])
def test_top_p_samples_from_the_likeliest_tokens_that_reach_it(policy, top_p: float) -> None:
    """The first token of 2,000 responses against the renormalised nucleus, made by hand."""
    prompt, n = PROMPTS[0], 2000
    out = HFEngine().generate(policy, [prompt], n, 1, 0.9, 4, top_p=top_p)
    p = conditional(policy, prompt, 0.9)
    order = p.argsort(descending=True)
    size = int((p[order].cumsum(0) < top_p).sum()) + 1
    nucleus = order[:size]
    assert 1 <= size < SIZE
    counts = torch.bincount(out.token_id[:, 0], minlength=SIZE)
    assert counts.sum() == counts[nucleus].sum() == n
    expected = p[nucleus] / p[nucleus].sum() * n
    assert size == 1 or chisquare(counts[nucleus].numpy(), expected.numpy()).pvalue > 1e-4
