"""Truncated importance weights between sampler and trainer: the formula, c, and the log."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import entropy_lab.train.rollout.hf as hf
from entropy_lab import load
from entropy_lab.analysis.audit import audit
from entropy_lab.errors import RunError
from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import policy_loss, sampler_weight
from entropy_lab.train.launch import run_training
from entropy_lab.train.layout import Layout
from entropy_lab.train.loop import sampler_mismatch
from entropy_lab.train.policy import make_score
from entropy_lab.train.rollout import Responses
from entropy_lab.types import HELD_OUT, TokenBatch
from ragged import minibatches, policy, ragged
from test_rollout import policy as small_policy  # noqa: F401  (a fixture)
from test_rollout import sample
from tiny import TINY, weights


def test_weights_by_hand() -> None:
    old = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, 9.0]], requires_grad=True)
    theirs = torch.tensor([[-1.5, -1.0, -2.5], [-1.0, -1.3, -9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    token = sampler_weight(old, theirs, mask, "token", 2.0)
    expected = [[math.exp(0.5), math.exp(-1.0), 2.0], [1.0, math.exp(0.3), 1.0]]
    torch.testing.assert_close(token, torch.tensor(expected))
    assert not token.requires_grad
    sequence = sampler_weight(old, theirs, mask, "sequence", 5.0)
    whole, other = math.exp(0.5 - 1.0 + 2.0), math.exp(0.3)
    expected = [[whole] * 3, [other, other, 1.0]]
    torch.testing.assert_close(sequence, torch.tensor(expected))
    capped = sampler_weight(old, theirs, mask, "sequence", 3.0)
    assert capped[0].tolist() == [3.0] * 3
    far = torch.full((1, 1), -50.0)
    lowest = sampler_weight(far, far * 0, far < 0, "token", 2.0)
    assert float(lowest) == pytest.approx(math.exp(-20))  # the bound of verl


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("grpo", {}),
        ("steer", {}),
        ("cispo", {}),
        ("clip_cov", {"ratio": 0.2, "lb": 0.0, "ub": 3.0}),
    ],
)
def test_c_is_scaled_by_the_weight_and_nothing_else_is(level: str, name: str, params: dict) -> None:
    """A sampler that is off by known amounts, in buckets too; the shares stay those of the step."""
    model, method = policy(), make_method(name, **params)
    scored, score = ragged(), make_score(policy(), 1.0)
    offset = torch.linspace(-0.6, 1.1, scored.responses.mask.numel()).view_as(
        scored.responses.token_id
    )
    steps = minibatches(model, method, Layout(3, 40))
    clean = {
        int(u): m.batch.old_logp[i] for p in steps for m in p for i, u in enumerate(m.batch.uid)
    }
    logp = torch.zeros_like(offset, dtype=torch.float64)
    for i in range(16):
        own = clean[(2 << 32) + i]
        logp[i, : len(own)] = own - offset[i, : len(own)]
    scored = replace(scored, responses=replace(scored.responses, logp=logp))
    corrected = minibatches(model, method, Layout(3, 40), scored, correction=(level, 1.5))

    def push(part: list) -> dict[tuple[int, int], float]:
        batches = [m.batch for m in part]
        stats = [score(m.inputs).detach() for m in part]
        found = {}
        for m, (plan, share) in zip(part, plan_step(method, batches, stats), strict=True):
            made = score(m.inputs)
            made.logp.retain_grad()
            policy_loss(made, m.batch, plan, share).loss.backward()
            for i, uid in enumerate(m.batch.uid.tolist()):
                for t in range(int(m.batch.mask[i].sum())):
                    found[uid & 0xFFFF, t] = float(made.logp.grad[i, t])
        return found

    before, after = push(steps[0]), push(corrected[0])
    assert before.keys() == after.keys() and sum(v != 0 for v in before.values()) > 20
    lengths = scored.responses.mask.sum(1).tolist()
    for (i, t), value in before.items():
        log = offset[i, t] if level == "token" else offset[i, : lengths[i]].sum()
        weight = min(math.exp(float(log)), 1.5)
        assert after[i, t] == pytest.approx(weight * value, rel=1e-5, abs=1e-15)


def test_a_sampler_that_is_the_trainer_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's own pass stands in for the sampler's values, so every weight is exactly 1."""
    settings = [*TINY, "train.rollouts=2", "probe.fixed_responses=0"]
    plain = run_training(None, settings, tmp_path / "plain")
    real = hf.HFEngine.generate

    def generate(self, model, prompts, n, max_tokens, temperature, seed):
        from entropy_lab.train.policy import model_inputs

        out = real(self, model, prompts, n, max_tokens, temperature, seed)
        assert self.logp and out.logp is not None
        with torch.no_grad():
            parts = [slice(a, a + 4) for a in range(0, len(out.mask), 4)]  # train.micro_batch
            score = make_score(model, temperature)
            own = torch.cat([score(model_inputs(out, rows)).logp for rows in parts])
        return replace(out, logp=own)

    monkeypatch.setattr(hf.HFEngine, "generate", generate)
    for level in ("token", "sequence"):
        out = run_training(None, [*settings, f"train.rollout_correction={level}"], tmp_path / level)
        left, right = weights(plain), weights(out)
        assert all(torch.equal(left[k], right[k]) for k in left)
        tokens, metrics = load(out).tokens(), load(out).metrics()
        assert (tokens["weight"] == 1.0).all()
        assert (tokens["rollout_logp"] == tokens["old_logp"]).all()
        assert (metrics[["rollout_logp_diff", "rollout_kl", "rollout_kl_k1"]] == 0).all(axis=None)


def off_by(monkeypatch: pytest.MonkeyPatch, off: torch.Tensor) -> None:
    """A sampler that reports off[t] nats too little at position t."""
    real = hf.HFEngine.generate

    def generate(*args, **named):
        out = real(*args, **named)
        if out.logp is None:
            return out
        return replace(out, logp=out.logp - off[: out.logp.shape[1]])

    monkeypatch.setattr(hf.HFEngine, "generate", generate)


def test_a_planted_offset_shows_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that reports 0.1 nats too little: w = exp(0.1) and c with it, k1 = -0.1."""
    settings = [*TINY, "train.rollouts=1", "train.minibatches=1", "optimizer.clip_norm=0.0"]
    plain = load(run_training(None, settings, tmp_path / "plain"))
    off_by(monkeypatch, torch.full((12,), 0.1))
    more = ["train.rollout_correction=token", "train.micro_tokens=40"]
    run = load(run_training(None, [*settings, *more], tmp_path / "run"))
    one, two = (
        t[(t["flags"] & HELD_OUT) == 0].sort_values(["uid", "pos"]).reset_index()
        for t in (plain.tokens(), run.tokens())
    )
    assert (one["grad_logp"] != 0).sum() > 4
    factor = math.exp(0.1)
    assert two["weight"].to_numpy() == pytest.approx(factor, rel=1e-5)
    assert two["grad_logp"].to_numpy() == pytest.approx(factor * one["grad_logp"], rel=1e-4)
    line = run.metrics().iloc[0]
    assert line["rollout_logp_diff"] == pytest.approx(0.1, abs=1e-5)
    assert line["rollout_kl_k1"] == pytest.approx(-0.1, abs=1e-5)
    assert line["rollout_kl"] == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-3)
    assert line["rollout_weight_mean"] == pytest.approx(factor, rel=1e-5)
    assert line["rollout_weight_max"] <= 2.0
    assert not {c for c in plain.metrics() if c.startswith("rollout_")}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", ["grpo", "opo"])
def test_the_audit_finds_the_corrected_gradient_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, name: str
) -> None:
    """Buckets, groups left out and a sampler that is off: the run's own method has its c."""
    off_by(monkeypatch, torch.linspace(-0.4, 0.9, 12))
    settings = [
        *TINY, f"method.name={name}", f"train.rollout_correction={level}", "train.rollouts=3",
        "train.micro_tokens=40", "rollout.dynamic_sampling=true", "rollout.prompts=8",
    ]  # fmt: skip
    run = run_training(None, settings, tmp_path / "run")
    assert load(run).tokens()["weight"].nunique() > 5
    row = audit(run, [name]).tables["audit"].set_index("method").loc[name]
    assert row["own"] and row["complete"] and row["distance_run_max"] <= 1e-6
    info = json.loads((run / "run.json").read_text())
    info["config"]["train"]["rollout_correction"] = "none"  # and it is the weights that do it
    (run / "run.json").write_text(json.dumps(info))
    assert audit(run, [name]).tables["audit"].set_index("method").loc[name, "distance_run"] > 0.01


def test_mismatch_by_hand() -> None:
    old = torch.tensor([[-1.0, -2.0, 3.0]])
    theirs = torch.tensor([[-1.5, -1.0, -7.0]])
    batch = TokenBatch(
        token_id=torch.zeros(1, 3, dtype=torch.long),
        mask=torch.tensor([[True, True, False]]),
        advantage=torch.zeros(1, 3),
        old_logp=old,
        rollout_logp=theirs,
    )
    found = sampler_mismatch(batch)
    assert found["rollout_logp_diff"] == pytest.approx(0.75)
    assert found["rollout_logp_diff_max"] == pytest.approx(1.0)
    assert found["rollout_kl_k1"] == pytest.approx(0.25)
    k3 = (math.exp(0.5) - 1 - 0.5 + math.exp(-1.0) - 1 + 1.0) / 2
    assert found["rollout_kl"] == pytest.approx(k3) and len(found) == 4
    assert sampler_mismatch(replace(batch, rollout_logp=None)) == {}
    assert sampler_mismatch(replace(batch, mask=batch.mask & False)) == {}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_engine_reports_what_it_sampled_from(small_policy, temperature: float) -> None:  # noqa: F811
    plain = sample(small_policy, temperature=temperature, seed=4)
    engine = hf.HFEngine(logp=True)
    prompts = [[5, 6, 7, 8], [9, 4], [3, 3, 3, 5, 2, 11, 10]]
    out = engine.generate(small_policy, prompts, 4, 10, temperature, 4)
    assert plain.logp is None and out.logp is not None
    for name in ("prompt_id", "token_id", "mask", "truncated"):
        assert torch.equal(getattr(plain, name), getattr(out, name))
    assert out.logp.shape == out.token_id.shape
    for row in range(len(out.mask)):
        prompt = out.prompt_id[row][out.prompt_mask[row]]
        tokens = out.token_id[row][out.mask[row]]
        with torch.no_grad():
            logits = small_policy(torch.cat([prompt, tokens])[None]).logits[0]
        known = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        expected = known.gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(out.logp[row][out.mask[row]], expected, rtol=1e-4, atol=1e-5)


def test_an_engine_that_reports_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hf.HFEngine.generate

    def silent(self, *args, **named) -> Responses:
        return replace(real(self, *args, **named), logp=None)

    monkeypatch.setattr(hf.HFEngine, "generate", silent)
    settings = [*TINY, "train.rollout_correction=token", "probe.fixed_responses=0"]
    with pytest.raises(
        RunError, match="needs the sampler's log-probabilities, which the engine 'hf' does not"
    ):
        run_training(None, settings, tmp_path / "run")
