"""What becomes of responses without an EOS and of prompts that are too long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from entropy_lab import load
from entropy_lab.analysis.doctor import Checkpoint, doctor
from entropy_lab.errors import RunError
from entropy_lab.interventions import make_method, plan_step
from entropy_lab.train.draws import draw_prompts
from entropy_lab.train.launch import run_training
from entropy_lab.train.layout import Layout
from entropy_lab.train.policy import make_score
from entropy_lab.train.replay import replay
from entropy_lab.train.rescore import open_rescorer
from entropy_lab.types import HELD_OUT, TRUNCATED
from ragged import minibatches, policy, ragged
from tiny import TINY, assert_same_run

# The traces of two-digit sums have up to 6 tokens: five leave a share of them unfinished.
CUT = [*TINY, "rollout.max_tokens=5", "rollout.prompts=8", "train.rollouts=3"]


def train(out: Path, *more: str) -> Path:
    return run_training(None, [*CUT, *more], out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("truncation")
    policies = ("keep", "mask", "zero")
    return {p: train(folder / p, f"rollout.truncated={p}") for p in policies}


def test_masked_responses_stay_in_samples_and_leave_the_tokens(runs: dict[str, Path]) -> None:
    kept, masked = load(runs["keep"]), load(runs["mask"])
    samples = masked.samples()
    cut, first = samples["truncated"], samples["rollout"] == 0
    assert 0.1 < cut.mean() < 0.9
    assert (samples["trained"] == ~cut).all()
    assert samples.loc[cut, "inclusion_prob"].isna().all()
    assert (samples.loc[cut, "length"] == 5).all() and samples["response"].str.len().gt(0).all()
    tokens = masked.tokens()
    assert set(tokens["uid"]) == set(samples.loc[~cut, "uid"])
    assert not (tokens["flags"] & TRUNCATED).any()
    # Of the first rollout, from equal weights, everything else is as without the policy: the
    # advantages too, whose baseline counts the masked ones.
    same = ["uid", "reward", "advantage", "length", "truncated", "response"]
    assert samples.loc[first, same].equals(kept.samples().loc[first, same])
    own = kept.tokens(step=0)
    flagged = own.loc[(own["flags"] & TRUNCATED) > 0, "uid"].unique()
    assert set(flagged) <= set(samples.loc[cut, "uid"]) and len(flagged) > 0
    assert kept.metrics()["response_length"][0] == masked.metrics()["response_length"][0]
    assert kept.metrics()["reward"][0] == masked.metrics()["reward"][0]


def test_the_fixed_set_is_measured_whole(runs: dict[str, Path]) -> None:
    kept, masked = load(runs["keep"]).fixed(), load(runs["mask"]).fixed()
    assert kept.equals(masked) and kept.groupby("uid").size().max() == 5


def test_the_loss_is_the_mean_over_the_kept_tokens(runs: dict[str, Path]) -> None:
    """c of the first step: the keep run's, times its number of tokens over that of the kept."""
    kept, masked = (load(runs[p]).tokens(step=0) for p in ("keep", "mask"))
    kept, masked = (t[(t["flags"] & HELD_OUT) == 0] for t in (kept, masked))
    assert len(masked) == load(runs["mask"]).steps()["n_tokens"][0] < len(kept)
    keys = ["uid", "pos"]
    both = masked.merge(kept, on=keys, suffixes=("", "_keep"))
    assert len(both) == len(masked) and (both["grad_logp"] != 0).any()
    ratio = len(kept) / len(masked)
    np.testing.assert_allclose(both["grad_logp"], both["grad_logp_keep"] * ratio, rtol=1e-5)


@pytest.mark.parametrize("normaliser", ["token_mean", "seq_mean", "constant"])
def test_masked_rows_have_no_share_by_hand(normaliser: Any) -> None:
    length = 9 if normaliser == "constant" else None
    method = make_method("grpo", normaliser=normaliser, constant_length=length)
    for layout in (Layout(8), Layout(8, 30)):
        part = minibatches(policy(), method, layout, mask_truncated=True)[0]
        batches = [m.batch for m in part]
        lengths = torch.cat([m.sampled().sum(1) for m in part])
        cut = torch.cat([b.truncated for b in batches])  # type: ignore
        assert 0 < int(cut.sum()) < 8
        kept = int(lengths[~cut].sum())
        shares = []
        for _, share in plan_step(method, batches, None):
            shares += [row.tolist() for row in share.policy]
        for row, size, gone in zip(shares, lengths.tolist(), cut.tolist(), strict=True):
            one = {"token_mean": 1 / kept, "constant": 1 / 72}.get(normaliser)
            one = one or 1 / (size * int((~cut).sum()))
            expected = [0.0 if gone else one] * size
            assert row[:size] == pytest.approx(expected) and not any(row[size:])


@pytest.mark.parametrize("name", ["grpo", "opo", "unlikeliness", "rloo", "qae"])
def test_the_baseline_counts_masked_responses(name: str) -> None:
    """opo weights by length and unlikeliness ranks by logp: those of a masked response are kept."""
    model, method = policy(), make_method(name)
    plain = minibatches(model, method, Layout(8))
    masked = minibatches(model, method, Layout(8), mask_truncated=True)
    for one, other in zip(plain, masked, strict=True):
        assert torch.equal(one[0].batch.advantage, other[0].batch.advantage)
        assert other[0].batch.mask.sum() < one[0].batch.mask.sum()
        assert torch.equal(other[0].sampled(), one[0].batch.mask)


def test_a_masked_run_replays_and_doctor_finds_nothing(tmp_path: Path) -> None:
    out = train(tmp_path / "run", "rollout.truncated=mask", "train.replay_every=1")
    rows = replay(out, {}, inner=2, deep=False).rows
    steps = load(out).steps().set_index("step")
    assert len(rows) == 6
    for _, row in rows.iterrows():
        taken = steps.loc[row["point"] + row["inner"]]
        assert [row[n] for n in ("n_tokens", "dH_train", "grad_norm")] == [
            taken[n] for n in ("n_tokens", "dH_train", "grad_norm")
        ]
    found = doctor(out, Checkpoint(**open_rescorer(out)._asdict()))
    assert [f.check for f in found.of_level("error")] == []


@pytest.mark.parametrize("method", ["grpo", "steer", "bapo", "influence_steer"])
def test_a_step_without_a_kept_response_moves_nothing(tmp_path: Path, method: str) -> None:
    settings = ["rollout.max_tokens=2", "rollout.truncated=mask", f"method.name={method}"]
    run = load(train(tmp_path / "run", *settings, "train.rollouts=1"))
    samples, metrics = run.samples(), run.metrics()
    assert samples["truncated"].all() and not samples["trained"].any()
    assert (metrics["grad_norm"] == 0).all() and (metrics["truncated_share"] == 1).all()
    assert (metrics["response_length"] == 2).all() and metrics["dH_train"].isna().all()
    # AdamW on a zero gradient from a fresh state: no weight moves.
    assert (run.steps()["dH_fixed"] == 0).all()


def test_zero_sets_the_reward_of_truncated_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entropy_lab.train.tasks.arithmetic import Arithmetic

    monkeypatch.setattr(Arithmetic, "reward", lambda self, response, problem: 1.0)
    more = ["train.rollouts=1", "probe.fixed_responses=0"]
    for policy_, expected in (("keep", 1.0), ("zero", 0.0), ("mask", 1.0)):
        out = train(tmp_path / policy_, f"rollout.truncated={policy_}", *more)
        samples = load(out).samples()
        cut = samples["truncated"]
        assert (samples.loc[cut, "reward"] == expected).all() and cut.any()
        assert (samples.loc[~cut, "reward"] == 1.0).all() and not cut.all()
        assert samples["trained"].all() == (policy_ != "mask")


def test_keep_is_the_default(runs: dict[str, Path], tmp_path: Path) -> None:
    assert_same_run(runs["keep"], train(tmp_path / "run"))


# --- prompts ------------------------------------------------------------------------------------


def parts(lengths: dict[str, list[int]], limit: int, policy: str) -> Any:
    """Draws by name of problems whose prompts have so many tokens."""

    def draw(count: int, name: str, number: int) -> list[Any]:
        return [SimpleNamespace(prompt="x" * n) for n in lengths[name][:count]]

    return SimpleNamespace(
        draw=draw,
        tokenizer=SimpleNamespace(
            encode=lambda text: list(range(len(text))), bos_token_id=None
        ),
        config=SimpleNamespace(
            rollout=SimpleNamespace(max_prompt_tokens=limit, long_prompts=policy)
        ),
    )


LENGTHS = {"r": [3, 9, 5, 6], "r replacement 1": [7, 2], "r replacement 2": [4]}


def test_long_prompts_are_refused_dropped_or_cut() -> None:
    with pytest.raises(
        RunError,
        match="'xxxxxxxxx' has 9 tokens, more than rollout.max_prompt_tokens = 5: raise it",
    ):
        draw_prompts(parts(LENGTHS, 5, "refuse"), 4, "r", 0)
    problems, ids, facts = draw_prompts(parts(LENGTHS, 5, "drop"), 4, "r", 0)
    assert [len(i) for i in ids] == [3, 5, 2, 4] == [len(p.prompt) for p in problems]
    assert facts == {"prompts_dropped": 3.0}
    problems, ids, facts = draw_prompts(parts(LENGTHS, 5, "left"), 4, "r", 0)
    assert ids == [[0, 1, 2], [4, 5, 6, 7, 8], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert [len(p.prompt) for p in problems] == LENGTHS["r"] and facts == {"prompts_cut": 2.0}
    _, ids, facts = draw_prompts(parts(LENGTHS, 0, "refuse"), 4, "r", 0)
    assert [len(i) for i in ids] == LENGTHS["r"] and facts == {}
    _, _, facts = draw_prompts(parts(LENGTHS, 9, "refuse"), 4, "r", 0)
    assert facts == {"prompts_dropped": 0.0}


def test_a_limit_that_nothing_fits_ends_with_a_reason() -> None:
    class Long(dict):
        def __missing__(self, key: str) -> list[int]:
            return [8]

    with pytest.raises(RunError, match="101 prompts have more than rollout.max_prompt_tokens = 5"):
        draw_prompts(parts(Long(), 5, "drop"), 1, "r", 0)


def test_a_run_says_what_it_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["rollout.max_prompt_tokens=3", "train.rollouts=2", "task.digits=1"]
    with pytest.raises(RunError, match="has 4 tokens, more than rollout.max_prompt_tokens = 3"):
        train(tmp_path / "refused", *more)
    out = train(tmp_path / "run", *more, "rollout.long_prompts=left")
    said = capsys.readouterr().err
    assert (
        said.count("8 prompts were longer than rollout.max_prompt_tokens and cut on the left") == 1
    )
    run = load(out)
    assert run.metrics()["prompts_cut"].tolist() == [8.0] * 4
    assert set(run.samples()["prompt_width"]) == {3}
    found = doctor(out, Checkpoint(**open_rescorer(out)._asdict()))
    rescored = next(f for f in found.findings if f.check == "rescored")
    assert rescored.level == "ok"  # the cut prompt is scored, not the text of the samples


def test_responses_are_joined_and_trimmed_by_hand() -> None:
    one = ragged().responses
    small = one.rows(torch.tensor([0, 1])).trimmed()
    assert small.prompt_mask.sum(1).tolist() == [2, 2] and small.prompt_id.shape[1] == 2
    assert small.token_id.shape[1] == int(small.mask.sum(1).max()) < 10
    joined = type(one).cat([small, one])
    assert joined.prompt_id.shape == (18, 7) and joined.token_id.shape == (18, 10)
    for i in (0, 1):
        own = joined.prompt_id[i][joined.prompt_mask[i]]
        assert torch.equal(own, one.prompt_id[i][one.prompt_mask[i]])
        assert torch.equal(joined.token_id[i][joined.mask[i]], one.token_id[i][one.mask[i]])
        assert joined.prompt_mask[i].tolist() == [False] * 5 + [True] * 2
    assert torch.equal(joined.token_id[2:], one.token_id) and joined.logp is None
    known = replace(one, logp=one.token_id.double())
    assert type(one).cat([known, known]).logp is not None
    assert type(one).cat([known, one]).logp is None


def test_a_scored_row_does_not_depend_on_its_padding() -> None:
    """The same responses in wide and in trimmed micro-batches, float64."""
    model, method = policy(), make_method("grpo")
    score = make_score(model, 1.0)
    found = []
    for layout in (Layout(8), Layout(8, 25)):
        rows = {}
        for m in (m for part in minibatches(model, method, layout) for m in part):
            entropy = score(m.inputs).entropy.detach()
            rows |= {int(u): entropy[i][m.batch.mask[i]] for i, u in enumerate(m.batch.uid)}
        found.append(rows)
    for uid, entropy in found[0].items():
        torch.testing.assert_close(found[1][uid], entropy, rtol=1e-10, atol=1e-12)
