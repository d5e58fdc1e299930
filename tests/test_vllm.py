"""Rollouts of a real vLLM engine: weights, seeds, ends, distribution, and whole runs.

The engine's Python is $VLLM_PYTHON, or this one where it has vllm (`make test-vllm`).
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from entropy_lab.errors import RunError
from entropy_lab.train.agreement import check_agreement
from entropy_lab.train.randomness import seeded
from entropy_lab.train.rollout import Responses, VLLMEngine, vllm
from entropy_lab.train.settings import VllmConfig
from tiny_models import rough_qwen2

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (PYTHON or importlib.util.find_spec("vllm")), reason="no Python with vllm: make vllm"
    ),
]

EOS, PAD, SIZE = 1, 0, 40
LONG = [2 + i % 37 for i in range(300)]  # more than two blocks of the prefix cache on a CPU
PROMPTS = [[5, 6, 7, 8], LONG, [9, 4]]


def new_policy(tied: bool = True):
    return rough_qwen2(
        0.1, vocab_size=SIZE, hidden_size=64, intermediate_size=128, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=tied,
    )  # fmt: skip


def new_engine(**settings) -> VLLMEngine:
    return VLLMEngine(VllmConfig(python=PYTHON, **settings))


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    made = new_engine()
    yield made
    made.close()


def plain_logits(model, out: Responses, row: int) -> Tensor:
    """(length, V) before each token of the response, without cache, batch or padding."""
    prompt = out.prompt_id[row][out.prompt_mask[row]]
    answer = out.token_id[row][out.mask[row]]
    return model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]


def plain_logp(model, out: Responses, temperature: float = 1.0) -> Tensor:
    """(B, T) as the trainer has it, one response at a time; differentiable."""
    rows = []
    for row in range(len(out.mask)):
        logits = plain_logits(model, out, row) / temperature
        tokens = out.token_id[row][out.mask[row]]
        logp = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(logp, (0, out.mask.shape[1] - len(logp))))
    return torch.stack(rows)


def one_update(model, optimizer: torch.optim.Optimizer, out: Responses, number: int) -> None:
    """A real REINFORCE step with made-up advantages."""
    with seeded(number):
        advantage = torch.randn(len(out.mask), 1)
    loss = -(advantage * plain_logp(model, out) * out.mask).sum() / out.mask.sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logp_agrees_through_three_updates(tied: bool) -> None:
    model, engine, temperature = new_policy(tied), new_engine(), 0.8
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    worst, moved = [], []
    for number in range(4):
        out = engine.generate(model, PROMPTS, 4, 24, temperature, seed=number)
        assert out.logp is not None
        with torch.no_grad():
            logp = plain_logp(model, out, temperature)
        worst.append(float((out.logp - logp).abs()[out.mask].max()))
        check_agreement(out, logp, engine)
        if number < 3:
            one_update(model, optimizer, out, number)
            with torch.no_grad():
                later = plain_logp(model, out, temperature)
            moved.append(float((later - logp).abs()[out.mask].mean()))
    engine.close()
    print(f"max |rollout_logp - logp| {worst}, moved by the updates on average {moved}")
    assert max(worst) <= 1e-4
    assert min(moved) > 0.01  # each of the old policies would have been noticed


def test_bfloat16_agrees_within_its_tolerance() -> None:
    model, engine = new_policy(), new_engine(dtype="bfloat16")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for number in range(2):
        out = engine.generate(model, PROMPTS, 4, 24, 1.0, seed=number)
        with torch.no_grad():
            logp = plain_logp(model, out)
        gap = (out.logp - logp).abs()[out.mask]
        print(f"bfloat16: mean {float(gap.mean()):.4f}, max {float(gap.max()):.4f}")
        assert float(gap.mean()) > 1e-4  # it does run in bfloat16
        check_agreement(out, logp, engine)
        one_update(model, optimizer, out, number)
    engine.close()
    assert engine.tolerance == 0.05


def test_an_engine_that_was_not_updated_is_noticed(engine, monkeypatch) -> None:
    model = new_policy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    out = engine.generate(model, PROMPTS, 4, 24, 1.0, seed=0)
    one_update(model, optimizer, out, 0)
    monkeypatch.setattr(engine, "update", lambda model: engine._process)
    out = engine.generate(model, PROMPTS, 4, 24, 1.0, seed=0)
    with torch.no_grad(), pytest.raises(RunError, match="the sampler is not the policy"):
        check_agreement(out, plain_logp(model, out), engine)
    monkeypatch.undo()
    out = engine.generate(model, PROMPTS, 4, 24, 1.0, seed=0)
    with torch.no_grad():
        check_agreement(out, plain_logp(model, out), engine)


def test_a_prefix_cache_that_was_not_reset_is_noticed(tmp_path, monkeypatch) -> None:
    worker = tmp_path / "vllm_worker.py"
    source = vllm._WORKER.read_text()
    assert source.count("if not self.llm.reset_prefix_cache():") == 1
    worker.write_text(source.replace("if not self.llm.reset_prefix_cache():", "if False:"))
    monkeypatch.setattr(vllm, "_WORKER", worker)
    model, engine = new_policy(), new_engine()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    out = engine.generate(model, PROMPTS, 4, 24, 1.0, seed=0)
    one_update(model, optimizer, out, 0)
    out = engine.generate(model, PROMPTS, 4, 24, 1.0, seed=0)
    engine.close()
    with torch.no_grad():
        logp = plain_logp(model, out)
    with pytest.raises(RunError, match=r"on the worst prompt, of 300 tokens\. .*stale prefix"):
        check_agreement(out, logp, engine)
    short = replace_rows(out, [0, 1, 2, 3, 8, 9, 10, 11])
    check_agreement(short, logp[[0, 1, 2, 3, 8, 9, 10, 11]], engine)  # within one block: fine


def replace_rows(out: Responses, rows: list[int]) -> Responses:
    return Responses(**{k: v[rows] for k, v in vars(out).items()})


def test_a_killed_engine_is_reported_and_replaced(engine) -> None:
    model = new_policy()
    engine.generate(model, PROMPTS, 1, 4, 1.0, seed=0)
    os.kill(engine._process._child.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="the vllm engine died while it had to update: signal SIGK"):
        engine.generate(model, PROMPTS, 1, 4, 1.0, seed=0)
    assert engine.generate(model, PROMPTS, 1, 4, 1.0, seed=0).mask.any()


def test_rows_ends_and_padding(engine) -> None:
    out = engine.generate(new_policy(), PROMPTS, 40, 20, 1.3, seed=2)
    assert out.prompt_id.shape == (120, 300) and out.token_id.dtype == torch.int64
    for row, ids in enumerate(out.token_id.tolist()):
        assert out.prompt_id[row][out.prompt_mask[row]].tolist() == PROMPTS[row // 40]
        length = ids.index(EOS) + 1 if EOS in ids else 20
        assert out.mask[row].tolist() == [i < length for i in range(len(ids))]
        assert bool(out.truncated[row]) == (EOS not in ids)
        assert set(ids[length:]) <= {PAD}
    assert out.truncated.any() and not out.truncated.all()
    assert (out.logp[~out.mask] == 0).all() and (out.logp[out.mask] < 0).all()


def test_any_of_several_eos_tokens_ends_a_response_and_no_setting_leaks(engine) -> None:
    from transformers import GenerationConfig

    model = new_policy()
    model.generation_config = GenerationConfig(
        eos_token_id=[EOS, 7], pad_token_id=PAD, do_sample=True, temperature=0.1, top_k=2,
        repetition_penalty=3.0,
    )  # fmt: skip
    out = engine.generate(model, PROMPTS, 40, 20, 1.0, seed=2)
    last = out.token_id.gather(1, out.mask.sum(1, keepdim=True) - 1)[:, 0]
    assert set(last[~out.truncated].tolist()) == {EOS, 7}
    inside = out.mask.clone()
    inside.scatter_(1, out.mask.sum(1, keepdim=True) - 1, False)
    assert not torch.isin(out.token_id[inside], torch.tensor([EOS, 7])).any()
    with torch.no_grad():
        check_agreement(out, plain_logp(model, out), engine)


def test_a_function_of_weights_and_seed(engine) -> None:
    model = new_policy()
    torch.manual_seed(99)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, other = (engine.generate(model, PROMPTS, 8, 20, 1.0, seed=s) for s in (7, 8))
    engine.close()  # another process
    second = engine.generate(model, PROMPTS, 8, 20, 1.0, seed=7)
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(second, name)), name
    assert not torch.equal(first.token_id, other.token_id)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_tokens_come_from_the_whole_softmax(engine, temperature: float) -> None:
    model, n = new_policy(), 2000  # 600,000 prompt tokens: far more than are read at a time
    out = engine.generate(model, [LONG, [5, 6, 7]], n, 1, temperature, seed=1)
    for i in range(2):
        drawn = out.token_id[i * n : (i + 1) * n, 0]
        with torch.no_grad():
            p = (plain_logits(model, out, i * n)[0].double() / temperature).softmax(-1)
        expected, counts = p.numpy() * n, torch.bincount(drawn, minlength=SIZE).numpy()
        common = expected >= 5
        pooled = [*counts[common], counts[~common].sum()]
        target = [*expected[common], expected[~common].sum()]
        if target[-1] < 1e-9:
            pooled, target = pooled[:-1], target[:-1]
        assert chisquare(pooled, target).pvalue > 1e-4


def test_greedy_is_the_argmax_and_top_p_the_nucleus(engine) -> None:
    model = new_policy()
    out = engine.generate(model, PROMPTS, 1, 12, 0.0, seed=1)
    cut = engine.generate(model, PROMPTS, 30, 12, 1.0, seed=1, top_p=0.6)
    whole = engine.generate(model, PROMPTS, 30, 12, 1.0, seed=1)
    with torch.no_grad():
        for row in range(len(out.mask)):
            best = plain_logits(model, out, row).argmax(-1)
            assert out.token_id[row][out.mask[row]].tolist() == best.tolist()
        assert nucleus_gap(model, cut) < 1e-4
        assert nucleus_gap(model, whole) == float("inf")


def nucleus_gap(model, out: Responses) -> float:
    """Largest |logp - log of the renormalised nucleus of 0.6|, inf for a token outside of it."""
    worst = 0.0
    for row in range(len(out.mask)):
        p, order = plain_logits(model, out, row).double().softmax(-1).sort(descending=True)
        kept = p.where(p.cumsum(-1) - p < 0.6, 0.0)
        kept = torch.zeros_like(p).scatter(1, order, kept / kept.sum(-1, keepdim=True))
        logp = kept.log().gather(1, out.token_id[row][out.mask[row]][:, None])[:, 0]
        worst = max(worst, float((logp - out.logp[row][out.mask[row]]).abs().max()))
    return worst
