"""Micro-batches by token budget: the same step in another layout, recorded and reproduced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from entropy_lab import load
from entropy_lab.analysis.doctor import Checkpoint, doctor
from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import policy_loss
from entropy_lab.train.launch import run_training
from entropy_lab.train.layout import Layout, buckets
from entropy_lab.train.packing import pack, unpack
from entropy_lab.train.policy import Micro, make_score
from entropy_lab.train.randomness import seeded
from entropy_lab.train.replay import replay
from entropy_lab.train.rescore import open_rescorer
from entropy_lab.types import HELD_OUT, TokenBatch, TokenStats
from ragged import Plain, minibatches, policy
from tiny import TINY, assert_same_run, metrics, weights

BUDGET = 40
BUCKETED = [*TINY, f"train.micro_tokens={BUDGET}", "rollout.prompts=8", "train.micro_batch=3"]


def test_buckets_by_hand() -> None:
    prompt, response = [2, 3, 2, 9, 2], [5, 1, 1, 9, 2]
    # Lengths 7, 4, 3, 18, 4: rows 2, then 4 and 1 of equal length, by prompt; then 0; then 3.
    assert buckets(prompt, response, 10) == [[2, 4], [1], [0], [3]]
    assert buckets(prompt, response, 1) == [[2], [4], [1], [0], [3]]
    assert buckets(prompt, response, 15) == [[2, 4, 1], [0], [3]]
    assert buckets(prompt, response, 10**6) == [[2, 4, 1, 0, 3]]
    assert buckets([], [], 5) == []


@pytest.mark.parametrize("budget", [1, 7, 30, 64, 1000])
def test_every_row_is_in_one_bucket_and_only_a_long_row_passes_the_budget(budget: int) -> None:
    rng = np.random.default_rng(budget)
    prompt, response = rng.integers(1, 20, 50).tolist(), rng.integers(1, 40, 50).tolist()
    found = buckets(prompt, response, budget)
    assert sorted(i for rows in found for i in rows) == list(range(50))
    for rows in found:
        cost = len(rows) * (max(prompt[i] for i in rows) + max(response[i] for i in rows))
        assert cost <= budget or len(rows) == 1


# --- one optimizer step, in float64 ------------------------------------------------------------


def gradient(model: Any, name: str, layout: Layout, **params: Any) -> dict[str, torch.Tensor]:
    """The gradient of the second minibatch, at other weights than those of the rollout."""
    method, score = make_method(name, **params), make_score(model, 1.0)
    steps = minibatches(model, method, layout)
    every = [m for part in steps for m in part]
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    whole, known = _gathered(every, score)
    memory = method.begin_rollout(whole, known, method.initial_state())
    with torch.no_grad(), seeded(1):
        for p in model.parameters():
            p.add_(torch.randn(p.shape, dtype=p.dtype) * 0.02)
    model.zero_grad()
    batches = [m.batch for m in steps[1]]
    stats = [Plain(score).measure(m.inputs) for m in steps[1]]
    for m, (plan, share) in zip(steps[1], plan_step(method, batches, stats, memory), strict=True):
        policy_loss(score(m.inputs), m.batch, plan, share).loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.load_state_dict(start, strict=False)
    return found


def _gathered(micros: list[Micro], score: Any) -> tuple[TokenBatch, TokenStats]:
    known = [Plain(score).measure(m.inputs) for m in micros]
    return TokenBatch.cat([m.batch for m in micros]), TokenStats.cat(known)


METHODS = [
    ("grpo", {}),
    ("grpo", {"normaliser": "seq_mean"}),
    ("dr_grpo", {"constant_length": 9}),
    ("gspo", {"clip_low": 0.1, "clip_high": 0.1}),
    ("opo", {}),
    ("unlikeliness", {}),
    ("steer", {}),
    ("clip_cov", {"ratio": 0.2, "lb": 0.0, "ub": 3.0}),
    ("kl_cov", {"ratio": 0.2}),
    ("fork_tokens", {}),
    ("entropy_bonus", {"beta": 0.01}),
    ("entropy_disc_batch", {"mu": 0.1}),
]


@pytest.mark.parametrize(("name", "params"), METHODS)
def test_the_gradient_of_a_step_does_not_depend_on_the_layout(name: str, params: Any) -> None:
    model = policy()
    plain = gradient(model, name, Layout(8), **params)
    assert max(float(g.abs().max()) for g in plain.values()) > 1e-4
    for layout in (Layout(3), Layout(8, 30), Layout(1, 60), Layout(1, 1), Layout(1, 10_000)):
        other = gradient(model, name, layout, **params)
        for key, value in plain.items():
            torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-10, msg=key)


def test_rows_keep_who_they_are_and_micros_fit_the_budget() -> None:
    model, method = policy(), make_method("grpo")
    plain = minibatches(model, method, Layout(3))
    cut = minibatches(model, method, Layout(3, 40))

    def by_uid(steps: list[list[Micro]]) -> dict[int, tuple]:
        found = {}
        for part in steps:
            for m in part:
                b = m.batch
                assert b.uid is not None and b.uid.tolist() == sorted(b.uid.tolist())
                for i, uid in enumerate(b.uid.tolist()):
                    keep = b.mask[i]
                    found[uid] = (
                        b.age, b.step, int(b.group[i]), float(b.reward[i]),
                        b.token_id[i][keep].tolist(), b.state[i][keep].tolist(),
                        b.advantage[i][keep].tolist(),
                    )  # fmt: skip
        return found

    assert by_uid(plain) == by_uid(cut) and len(by_uid(cut)) == 16
    assert sorted(by_uid(cut)) == [(2 << 32) + i for i in range(16)]
    for m in (m for part in cut for m in part):
        rows, prompt, response = m.widths()
        assert rows * (prompt + response) <= 40 or rows == 1
        assert prompt == m.inputs.seen[:, :prompt].sum(1).max()
        assert response == m.batch.mask.sum(1).max()
    assert {m.widths()[1:] for part in plain for m in part} == {(7, 10)}


def test_packed_micro_batches_come_back_bit_for_bit() -> None:
    for layout in (Layout(3), Layout(3, 40)):
        [micros, _] = minibatches(policy(), make_method("grpo"), layout)
        back = unpack(pack(micros, "x"), "x", 99, age=0, step=6, seed=7)
        assert len(back) == len(micros) > 2
        for one, other in zip(micros, back, strict=True):
            for part, twin in ((one.inputs, other.inputs), (one.batch, other.batch)):
                for field, value in vars(part).items():
                    got = getattr(twin, field)
                    tensor = isinstance(value, torch.Tensor)
                    assert torch.equal(value, got) if tensor else value == got, field


def test_tensors_of_an_earlier_version_are_cut_by_count() -> None:
    [micros, _] = minibatches(policy(), make_method("grpo"), Layout(3))
    tensors = {k: v for k, v in pack(micros, "x").items() if k != "x.layout"}
    back = unpack(tensors, "x", 3)
    assert [len(m.batch.mask) for m in back] == [3, 3, 2]
    assert all(
        torch.equal(a.inputs.input_id, b.inputs.input_id) for a, b in zip(micros, back, strict=True)
    )


# --- through the real trainer -------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = [*BUCKETED, "train.replay_every=2", "probe.deep_every=1", "train.rollouts=4"]
    return run_training(None, settings, tmp_path_factory.mktemp("layout") / "run")


def test_samples_say_in_which_layout_a_row_was_measured(run: Path) -> None:
    tokens, samples = load(run).tokens(), load(run).samples()
    own = tokens[(tokens["flags"] & HELD_OUT) == 0]
    first = own.drop_duplicates("uid").set_index("uid")
    rows = samples.set_index("uid")
    assert (first["micro"] == rows.loc[first.index, "micro"]).all()
    assert (first["age"] == rows.loc[first.index, "minibatch"]).all()
    length = own.groupby("uid").size()
    samples["length"] = samples["uid"].map(length)
    micros = samples.groupby(["rollout", "minibatch", "micro"])
    assert (micros[["prompt_width", "response_width"]].nunique() == 1).all(axis=None)
    assert (micros["length"].max() == micros["response_width"].first()).all()
    cost = micros.size() * (micros["prompt_width"].first() + micros["response_width"].first())
    assert cost.max() <= BUDGET and micros.size().nunique() > 1
    ordered = tokens[["step", "micro", "uid", "pos"]]
    assert ordered.equals(
        ordered.sort_values(["step", "micro", "uid", "pos"]).reset_index(drop=True)
    )


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_without_a_step_nothing_changes_with_buckets(tmp_path: Path, fraction: float) -> None:
    more = ["optimizer.lr=0.0", "train.rollouts=2", f"probe.fraction={fraction}"]
    run = load(run_training(None, [*BUCKETED, *more], tmp_path / "run"))
    tokens = run.tokens()
    assert len(tokens) > 100 and (tokens["dH"] == 0.0).all() and (tokens["dlogp"] == 0.0).all()
    assert (tokens["flags"] & HELD_OUT).any()
    assert (run.steps()["dH_fixed"] == 0.0).all()


def test_weights_do_not_depend_on_the_probe_with_buckets(run: Path, tmp_path: Path) -> None:
    more = ["train.rollouts=4", "probe.enabled=false"]
    out = run_training(None, [*BUCKETED, *more], tmp_path / "run")
    left, right = weights(run), weights(out)
    assert all(torch.equal(left[k], right[k]) for k in left)


def test_a_bucketed_run_resumes_and_replays_bit_for_bit(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [*BUCKETED, "train.replay_every=2", "probe.deep_every=1"]
    run_training(None, [*settings, "train.rollouts=2"], out)
    run_training(None, ["train.rollouts=4"], out, resume=True)
    assert_same_run(run, out)
    rows = replay(run, {}, inner=2).rows
    steps = load(run).steps().set_index("step")
    assert len(rows) == 4
    for _, row in rows.iterrows():
        taken = steps.loc[row["point"] + row["inner"]]
        for name in ("dH_train", "grad_norm", "entropy_token_mean", "G_dtheta"):
            assert row[name] == taken[name], name


def test_doctor_scores_again_in_the_recorded_layout(run: Path) -> None:
    """H of the first step after a checkpoint, from text and ids alone, has the logged bits."""
    found = doctor(run, Checkpoint(**open_rescorer(run)._asdict()))
    assert not found.of_level("error")
    rescored = next(f for f in found.findings if f.check == "rescored")
    assert rescored.level == "ok"
    rescorer = open_rescorer(run)
    tokens, samples = load(run).tokens(step=rescorer.step - 1), load(run).samples()
    own = tokens[(tokens["flags"] & HELD_OUT) == 0]
    first = own[own["micro"] == 1]
    told = samples.set_index("uid").loc[first["uid"].unique()]
    ids = [r["token_id"].to_numpy() for _, r in first.groupby("uid", sort=False)]
    widths = (len(told), int(told["prompt_width"].iloc[0]), int(told["response_width"].iloc[0]))
    score = rescorer.score_as(told["prompt"].tolist(), ids, [widths])
    after = first["entropy"].to_numpy(np.float64) + first["dH"].to_numpy(np.float64)
    np.testing.assert_array_equal(np.float32(np.concatenate(score[1])), np.float32(after))


def test_layouts_differ_by_rounding_alone(run: Path, tmp_path: Path) -> None:
    plain = [t for t in BUCKETED if "micro_tokens" not in t]
    out = run_training(None, [*plain, "train.rollouts=1"], tmp_path / "run")
    one, other = metrics(run)[:2], metrics(out)
    for key in ("entropy_token_mean", "dH_train", "dH_heldout", "grad_norm", "reward"):
        assert [m[key] for m in one] == pytest.approx([m[key] for m in other], rel=1e-3)
    stored = load_file(run / "replay" / "step-000000" / "extra.safetensors")
    assert stored["age0.layout"][:, 0].sum() == 16
