"""The probe on TRL's GRPOTrainer: training does not change, and the rows are what happened."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("trl", reason="pip install 'entropy-lab[trl]'")

from entropy_lab import load
from entropy_lab.adapters.trl import attach
from entropy_lab.types import CLIPPED_HIGH, CLIPPED_LOW, SELECTED
from trl_runs import make_model, make_trainer

# name: settings of TRL, options of the probe; ten steps each. Together they have every loss_type.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dapo": (
        {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2},
        {"floor_every": 5},
    ),
    "grpo": (
        {"gradient_accumulation_steps": 3, "top_entropy_quantile": 0.5, "beta": 0.04},
        {"fraction": 0.5},
    ),
    "bnpo": ({"entropy_coef": 0.01, "delta": 1.5, "num_iterations": 2}, {"every": 2}),
    "dr_grpo": ({"use_adaptive_entropy": True, "mask_truncated_completions": True}, {}),
    "cispo": ({"steps_per_generation": 2, "epsilon_high": 1.02}, {"profile": "core"}),
    "sapo": ({"scale_rewards": "batch", "gradient_checkpointing": True}, {}),
    "luspo": ({"importance_sampling_level": "sequence", "num_iterations": 2}, {}),
    "vespo": ({"steps_per_generation": 2, "temperature": 0.7}, {"deep_every": 5}),
}
STEPS = 10


class Ran(NamedTuple):
    trainer: Any
    path: Path

    @property
    def run(self) -> Any:
        return load(self.path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Ran]]:
    """Each configuration trained without the probe and with it, when it is first asked for."""
    home, made = tmp_path_factory.mktemp("trl"), {}

    class Made(dict):
        def __missing__(self, name: str) -> tuple[Any, Ran]:
            settings, options = CONFIGS[name]
            settings = {"loss_type": name, "max_steps": STEPS, "epsilon": 0.05, **settings}
            plain = make_trainer(home / f"{name}-plain", **settings)
            plain.train()
            state = torch.get_rng_state()
            watched = make_trainer(home / f"{name}-out", **settings)
            attach(watched, home / name, **options)
            watched.train()
            assert torch.equal(torch.get_rng_state(), state), "the probe drew a random number"
            made[name] = self[name] = plain, Ran(watched, home / name)
            return made[name]

    return Made()


def weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach() for p in trainer.model.parameters()]


def own_log(trainer: Any) -> list[dict[str, float]]:
    """The trainer's log without clocks and without what we add to it."""
    timed = ("runtime", "per_second", "step_time", "entropy_lab/", "flos")
    return [
        {k: v for k, v in line.items() if not any(word in k for word in timed)}
        for line in trainer.state.log_history
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_training_is_bitwise_that_of_a_run_without_the_probe(pairs, name: str) -> None:
    plain, (watched, path) = pairs[name]
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(watched), strict=True))
    assert str(own_log(plain)) == str(own_log(watched))  # text: NaN is NaN
    start = list(make_model()[0].parameters())
    assert not all(torch.equal(a, b) for a, b in zip(start, weights(watched), strict=True))
    run = load(path)
    assert run.info["status"] == "finished" and len(run.steps()) == STEPS
    assert not hasattr(watched, "_entropy_lab") and "train" not in vars(watched)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_rows_agree_with_the_trainers_own_log(pairs, name: str) -> None:
    """TRL averages over tokens in a micro-batch, then over micro-batches: so are the rows."""
    _, (trainer, path) = pairs[name]
    run = load(path)
    log = [line for line in trainer.state.log_history if "entropy" in line]
    metrics = pd.DataFrame(run.metrics())
    assert np.allclose(metrics["trl_entropy"], [line["entropy"] for line in log], atol=1e-6)
    rewards = [line.get("reward") for line in log]
    known = [i for i, r in enumerate(rewards) if r is not None]
    samples = run.samples()
    for i in known:
        told = samples[samples["step"] == i]
        assert told["reward"].mean() == pytest.approx(rewards[i], abs=1e-6)
    assert np.allclose(metrics["grad_norm"], [line["grad_norm"] for line in log], rtol=1e-4)
    if CONFIGS[name][1].get("fraction", 1) < 1:
        return
    tokens = run.tokens()
    tokens = tokens[(tokens["flags"] & 32) == 0]
    for step, rows in tokens.groupby("step"):
        micros = rows.groupby("micro")
        assert micros["entropy"].mean().mean() == pytest.approx(log[step]["entropy"], abs=2e-5)
        for bit, key in ((CLIPPED_LOW, "low"), (CLIPPED_HIGH, "high")):
            theirs = log[step].get(f"clip_ratio/{key}_mean", log[step].get("cispo_clip_ratio"))
            if theirs is None or (name == "cispo" and key == "low"):
                continue
            share = (rows["flags"] & bit > 0).groupby(rows["micro"]).mean().mean()
            if name == "luspo":  # per sequence there: a share of responses
                first = rows.drop_duplicates(["micro", "uid"])
                share = (first["flags"] & bit > 0).groupby(first["micro"]).mean().mean()
            assert share == pytest.approx(theirs, abs=1e-6)


def test_clips_did_happen(pairs) -> None:
    """The above would hold for a run without any."""
    seen = [pairs[n][1].run.steps()["clip_high_frac"].max() for n in ("dapo", "luspo", "cispo")]
    assert min(seen) > 0


@pytest.mark.parametrize("name", ["dapo", "grpo", "cispo"])
def test_a_row_is_who_it_says_it_is(pairs, name: str) -> None:
    """Text, reward, group and advantage of a response belong to its tokens, shuffled or not."""
    trainer, run = pairs[name][1].trainer, pairs[name][1].run
    tokens, samples = run.tokens(), run.samples().set_index("uid")
    tokenizer = trainer.processing_class
    for uid, rows in tokens[tokens["flags"] & 32 == 0].groupby("uid"):
        told = samples.loc[uid]
        rows = rows[rows["step"] == rows["step"].iloc[0]].sort_values("pos")
        text = tokenizer.decode(rows["token_id"].tolist(), skip_special_tokens=True)
        assert text == told["response"]
        assert told["reward"] == pytest.approx(text.count("a") / max(1, len(text)))
        assert len(rows) == told["length"] and len(set(rows["advantage"])) == 1
    groups = samples.groupby("group")
    assert (groups["prompt"].nunique() == 1).all() and (groups.size() == 4).all()
    reward = groups["reward"]
    wanted = (samples["reward"] - reward.transform("mean")) / (reward.transform("std") + 1e-4)
    assert np.allclose(samples["advantage"], wanted, atol=1e-4)
    assert samples.index.is_unique


def test_old_logp_is_that_of_the_policy_that_sampled(pairs) -> None:
    run = pairs["dapo"][1].run
    tokens, steps = run.tokens(), run.steps().set_index("step")
    assert not steps["old_logp_is_logp"].any()
    first = tokens[(tokens["step"] == 0) & (tokens["flags"] & 32 == 0)]
    assert np.allclose(first["old_logp"], first["logp"], atol=1e-5)
    assert np.allclose(first["old_entropy"], first["entropy"], atol=1e-5)
    # A step later the same response is older: what it was sampled with stays.
    later = tokens[(tokens["step"] == 2) & (tokens["age"] == 2)]
    both = first.merge(later, on=["uid", "pos"], suffixes=("", "_later"))
    assert len(both) > 20
    assert np.allclose(both["old_logp"], both["old_logp_later"])
    assert (both["logp"] - both["logp_later"]).abs().max() > 1e-3


def test_old_logp_is_filled_in_where_trl_leaves_it_out(pairs) -> None:
    run = pairs["grpo"][1].run
    assert run.steps()["old_logp_is_logp"].all()
    tokens = run.tokens()
    assert np.allclose(tokens["old_logp"], tokens["logp"], atol=1e-5)


def test_the_next_steps_responses_are_held_out(pairs) -> None:
    tokens = pairs["dapo"][1].run.tokens()
    held = tokens[tokens["flags"] & 32 > 0]
    assert set(held["step"]) == {0, 4, 8}  # the rollout's only step with another one unseen
    trained = tokens[(tokens["step"] == 1) & (tokens["flags"] & 32 == 0)]
    assert set(held[held["step"] == 0]["uid"]) == set(trained["uid"])


def test_high_entropy_masks_are_seen(pairs) -> None:
    """top_entropy_quantile 0.5: about half of the tokens have weight 0 and no gradient."""
    tokens = pairs["grpo"][1].run.tokens()
    dropped = tokens[tokens["flags"] & SELECTED > 0]
    assert 0.3 < len(dropped) / len(tokens) < 0.6
    assert (dropped["weight"] == 0).all() and (tokens["weight"].isin([0, 1])).all()


def test_gradients_are_those_of_the_loss(pairs) -> None:
    """The audit's own backward from c and e gives the step's gradient, where nothing else flows."""
    for name in ("dapo", "bnpo", "cispo", "vespo", "sapo"):
        audit = pairs[name][1].run.steps()["gradient_audit"].dropna()
        assert len(audit) and audit.max() < 1e-5, name
    # beta != 0: the KL term reaches the same logp, so it is in c as well.
    assert pairs["grpo"][1].run.steps()["gradient_audit"].dropna().max() < 1e-5


def test_deep_steps_add_up(pairs) -> None:
    steps = pairs["vespo"][1].run.steps()
    deep = steps[steps["identity_error"].notna()]
    assert list(deep["step"]) == [0, 5] and deep["identity_error"].max() < 1e-2


def test_dH_is_the_difference_of_two_passes_that_know_nothing_of_the_probe(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", max_steps=1, learning_rate=3e-3)
    before, after = (make_model()[0].double() for _ in range(2))
    attachment = attach(trainer, tmp_path / "run")
    micros = []
    own = attachment.watch._record
    attachment.watch._record = lambda call, kept: (micros.append(kept), own(call, kept))[1]
    trainer.train()
    [micro] = micros
    after.load_state_dict({k: v.double() for k, v in trainer.model.state_dict().items()})
    ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], 1)
    seen = torch.cat([micro["prompt_mask"], micro["completion_mask"]], 1)
    width = micro["completion_ids"].shape[1]

    def entropy(model: Any) -> torch.Tensor:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=seen).logits[:, -width - 1 : -1]
        return torch.distributions.Categorical(logits=logits / trainer.temperature).entropy()

    h, change = entropy(before), entropy(after) - entropy(before)
    rows = load(tmp_path / "run").tokens()
    assert len(rows) == int(micro["completion_mask"].sum())
    place = {int(u): i for i, u in enumerate(micro["entropy_lab_uid"])}
    at = ([place[u] for u in rows["uid"]], rows["pos"].tolist())
    assert np.allclose(rows["entropy"], h[at], atol=1e-5)
    assert np.allclose(rows["dH"], change[at], atol=2e-6)
    assert rows["dH"].abs().max() > 1e-4


def test_dH_of_a_step_is_that_of_the_bundled_trainer(tmp_path: Path) -> None:
    """The same responses, weights and settings: its loss, clip, optimizer and probe, to 1e-5."""
    from entropy_lab import Probe
    from entropy_lab.interventions import make_method, plan_step
    from entropy_lab.loss import policy_loss
    from entropy_lab.train.loop import clip
    from entropy_lab.train.policy import Inputs, make_score

    settings = {"loss_type": "bnpo", "max_steps": 2, "steps_per_generation": 2, "delta": 10.0}
    trainer = make_trainer(tmp_path / "out", learning_rate=1e-3, optim="adamw_torch", **settings)
    model = make_model()[0]  # the weights that the trainer begins with
    attachment = attach(trainer, tmp_path / "run", held_out=False)
    micros = []
    own = attachment.watch._record

    def record(call: Any, kept: Any) -> Any:
        micros.append((kept, own(call, kept)))
        return micros[-1][1]

    attachment.watch._record = record
    trainer.train()
    a = trainer.args
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=a.learning_rate, betas=(a.adam_beta1, a.adam_beta2),
        eps=a.adam_epsilon, weight_decay=a.weight_decay,
    )  # fmt: skip
    method = make_method("grpo", dual_clip=10.0)
    params = list(model.parameters())
    with Probe(model, optimizer, tmp_path / "ours", make_score(model, 1.0)) as probe:
        for micro, (batch, _) in micros:
            ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], 1)
            seen = torch.cat([micro["prompt_mask"], micro["completion_mask"]], 1)
            inputs = Inputs(ids, seen, (seen.cumsum(1) - 1).clamp(min=0), micro["completion_ids"])
            [(plan, share)] = plan_step(method, [batch], None)
            stats = probe.record(inputs, batch)
            policy_loss(stats, batch, plan, share).loss.backward()
            _, kappa = clip(params, a.max_grad_norm)
            probe.note(kappa=kappa)
            optimizer.step()
            optimizer.zero_grad()
    keys = ["step", "uid", "pos"]
    theirs, ours = (
        load(tmp_path / name).tokens().sort_values(keys).reset_index(drop=True)
        for name in ("run", "ours")
    )
    assert len(theirs) == len(ours) > 50 and theirs[keys].equals(ours[keys])
    for column, most in (("entropy", 1e-5), ("dH", 1e-5), ("grad_logp", 1e-6), ("dlogp", 1e-5)):
        assert np.abs(theirs[column] - ours[column]).max() < most, column
    assert theirs["dH"].abs().max() > 1e-3 and math.isfinite(theirs["dH"].sum())
