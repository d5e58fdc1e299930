"""The sampling loop: the draws of `generate`, the rows it leaves out, and other kinds of caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from entropy_lab.errors import RunError
from entropy_lab.train.randomness import seeded
from entropy_lab.train.rollout import HFEngine
from tiny_models import roughened

EOS, PAD, SIZE = 1, 0, 12
PROMPTS = [[5, 6, 7, 8], [9, 4], [3, 3, 3, 5, 2, 11, 10], [7]]
IDS = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
SHAPE = {
    "vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, **IDS,
}  # fmt: skip


@pytest.fixture(scope="module")
def qwen():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with seeded(3):
        return roughened(Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)))


def by_generate(model: Any, n: int, tokens: int, temperature: float, seed: int) -> torch.Tensor:
    """transformers' own loop on every row to the end."""
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in PROMPTS]).repeat_interleave(n, 0)
    seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    with seeded(seed), torch.no_grad():
        full = model.generate(
            input_ids=ids, attention_mask=seen.repeat_interleave(n, 0), do_sample=True, top_k=0,
            temperature=temperature, max_new_tokens=tokens,
        )  # fmt: skip
    return full[:, width:]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("ends", [[EOS], [EOS, 7]])
def test_the_draws_are_those_of_generate(qwen, temperature: float, ends: list[int]) -> None:
    qwen.generation_config.eos_token_id = ends
    try:
        for seed, n, tokens in ((0, 1, 9), (1, 20, 1), (2, 50, 30)):
            expected = by_generate(qwen, n, tokens, temperature, seed)
            found = HFEngine().generate(qwen, PROMPTS, n, tokens, temperature, seed)
            assert torch.equal(found.token_id, expected)
    finally:
        qwen.generation_config.eos_token_id = EOS


def test_a_prompt_is_read_once_and_what_has_ended_leaves_the_passes(qwen) -> None:
    passes: list[tuple[int, int]] = []
    hook = qwen.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        out = HFEngine().generate(qwen, PROMPTS, 50, 40, 1.0, 5)
    finally:
        hook.remove()
    length = out.mask.sum(1)
    assert passes[0] == (4, 7) and {n for _, n in passes[1:]} == {1}
    for step, (rows, _) in enumerate(passes[1:], start=1):
        running = int((length > step).sum())
        assert running <= rows <= max(8, running * 16 / 15 + 1)
    assert passes[1][0] > 100 and passes[-1][0] < 40


def plainly(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest continuation by passes over the whole text, without any cache."""
    text = list(prompt)
    while len(text) < len(prompt) + tokens and text[len(prompt) :][-1:] != [EOS]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits
        text.append(int(logits[0, -1].argmax()))
    return text[len(prompt) :]


def sliding() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5))


def learned_positions() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS)
    )


def positions_of_its_own() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(
        BloomConfig(vocab_size=SIZE, hidden_size=32, n_layer=2, n_head=4, **IDS)
    )


def recurrent() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(vocab_size=SIZE, hidden_size=32, num_hidden_layers=2, state_size=8, **IDS)
    )


@pytest.mark.parametrize("make", [sliding, learned_positions, positions_of_its_own, recurrent])
def test_cold_samples_of_other_models_are_the_argmax_of_plain_passes(make: Any) -> None:
    with seeded(4):
        model = roughened(make())
    # Without padding: a recurrent model need not know how to leave it out.
    prompts = [[5, 6, 7, 8], [9, 4, 2, 6], [3, 3, 11, 10]]
    out = HFEngine().generate(model, prompts, 6, 14, 1e-5, 0)
    lengths = set()
    for row, (ids, mask) in enumerate(zip(out.token_id, out.mask, strict=True)):
        assert ids[mask].tolist() == plainly(model, prompts[row // 6], 14)
        lengths.add(int(mask.sum()))
    assert out.token_id.shape[1] == max(lengths)


def test_weights_that_cannot_be_sampled_from_are_named(qwen) -> None:
    from copy import deepcopy

    broken = deepcopy(qwen)
    with torch.no_grad():
        broken.model.norm.weight[3] = float("nan")
    with pytest.raises(RunError, match="cannot sample: the model's logits are not finite"):
        HFEngine().generate(broken, PROMPTS, 2, 3, 1.0, 0)


def test_what_was_drawn_is_told_without_another_pass(qwen) -> None:
    """With the same draws: 0 at padding, None where the whole softmax was not drawn from."""
    passes: list[tuple[int, ...]] = []
    hook = qwen.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        plain = HFEngine().generate(qwen, PROMPTS, 20, 12, 0.7, 5)
        first, passes[:] = list(passes), []
        told = HFEngine(logp=True).generate(qwen, PROMPTS, 20, 12, 0.7, 5)
        assert passes == first
    finally:
        hook.remove()
    assert torch.equal(plain.token_id, told.token_id) and plain.logp is None
    assert told.logp is not None and (told.logp[~told.mask] == 0).all()
    with torch.no_grad():
        for row in range(0, len(told.mask), 7):
            prompt = told.prompt_id[row][told.prompt_mask[row]]
            answer = told.token_id[row][told.mask[row]]
            logits = qwen(input_ids=torch.cat([prompt, answer])[None]).logits[0]
            own = (logits[len(prompt) - 1 : -1].double() / 0.7).log_softmax(-1)
            expected = own.gather(1, answer[:, None])[:, 0]
            assert torch.allclose(told.logp[row][told.mask[row]].double(), expected, atol=1e-5)
    for temperature, top_p in ((0.0, 1.0), (1.0, 0.5)):
        out = HFEngine(logp=True).generate(qwen, PROMPTS, 2, 3, temperature, 0, top_p)
        assert out.logp is None
