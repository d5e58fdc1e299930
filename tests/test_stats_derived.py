"""What follows from the statistics, against vocabulary sums and plain Python integers."""

from __future__ import annotations

import pytest
import torch

from entropy_lab.stats import QUADRANTS, entropy_slopes, quadrant, state_hash, token_stats
from golden import load_golden


def test_slopes_are_the_vocabulary_sums_they_replace():
    gen = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 6, 30, generator=gen, dtype=torch.float64)
    token_id = torch.randint(30, (4, 6), generator=gen)
    got = entropy_slopes(token_stats(logits, token_id))
    log_pi = torch.log_softmax(logits, -1)
    pi = log_pi.exp()
    s = pi * (log_pi - (pi * log_pi).sum(-1, keepdim=True))
    want = (s.gather(-1, token_id[..., None]).squeeze(-1), (pi * s).sum(-1), (s * s).sum(-1))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_slopes_predict_the_golden_finite_differences():
    golden = {k: torch.from_numpy(v) for k, v in load_golden().items()}
    s_a, mean_s, square = entropy_slopes(token_stats(golden["z"], golden["action"]))
    for got, key in ((mean_s - s_a, "dH_unit_ascent_fd"), (square, "dH_unit_entropy_ascent_fd")):
        assert float((got - golden[key]).abs().max() / golden[key].abs().max()) < 1e-6


def test_quadrants_by_hand():
    advantage = torch.tensor([[1.0, 2.0, -1.0, -0.5, 0.0, 1.0]])
    logp = torch.tensor([[-0.1, -3.0, -0.1, -3.0, -0.1, -1.0]])
    got = quadrant(advantage, logp, torch.ones(1, 6))
    assert got.dtype == torch.int8
    names = [QUADRANTS[i] for i in got[0].tolist()]
    want = ["pos_likely", "pos_unlikely", "neg_likely", "neg_unlikely", "zero", "pos_unlikely"]
    assert names == want


def plain_hash(tokens: list[int]) -> int:
    """The same sum in unbounded Python integers."""
    word, step = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x + step) & word
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
        return x ^ (x >> 31)

    total = sum(mix(t + mix(i)) for i, t in enumerate(tokens))
    out = mix(total)
    return out - (1 << 64) if out >> 63 else out


def test_state_hash_equals_plain_python_for_any_padding():
    prompt, response = [7, 0, 151_935, 3], [5, 5, 9]
    want = [plain_hash(prompt + response[:t]) for t in range(3)]
    left = torch.tensor([[99, 98, *prompt], [0, 0, *prompt], [*prompt, 1, 2]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    tokens = torch.tensor([[*response, 0], [*response, 4], [*response, 8]])
    got = state_hash(left, mask, tokens)
    assert got.dtype == torch.int64 and got[:, :3].tolist() == [want] * 3


def test_state_hash_separates_states_and_joins_shared_prefixes():
    gen = torch.Generator().manual_seed(3)
    prompt = torch.randint(4, (200, 6), generator=gen)
    response = torch.randint(4, (200, 40), generator=gen)
    got = state_hash(prompt, torch.ones_like(prompt).bool(), response).tolist()
    seen: dict[tuple[int, ...], int] = {}
    for row in range(200):
        for t in range(40):
            state = (*prompt[row].tolist(), *response[row, :t].tolist())
            assert seen.setdefault(state, got[row][t]) == got[row][t]
    assert len(set(seen.values())) == len(seen) > 5000


def test_state_hash_errors():
    ids = torch.zeros(2, 3).long()
    with pytest.raises(TypeError, match=r"prompt_mask must be bool.*mask.bool\(\)"):
        state_hash(ids, torch.ones(2, 3), ids)
    with pytest.raises(ValueError, match=r"shapes \[\(2, 3\), \(2, 4\), \(2, 3\)\]"):
        state_hash(ids, torch.ones(2, 4).bool(), ids)
