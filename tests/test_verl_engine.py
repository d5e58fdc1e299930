"""Around verl's own engine: rows, order, weights, every loss of its registry, failures.

The engine is verl's FSDP2 engine on a CPU (verl_cpu.py). Statistics are held against logits of a
plain model with the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("verl", reason="needs verl: make test-verl")

import verl_cpu
from entropy_lab import load, open_run
from entropy_lab.errors import RunError
from test_audit_verl import SETTINGS

pytestmark = pytest.mark.verl
KEYS = ["step", "uid", "pos"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    verl_cpu.use_cpu()
    with verl_cpu.one_process():
        yield verl_cpu.save_model(tmp_path_factory.mktemp("verl") / "model")


@pytest.fixture(scope="module")
def one_engine(model: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    engine = verl_cpu.make_engine(model, external_lib="entropy_lab.adapters.verl")
    return engine, verl_cpu.as_new(engine)


@pytest.fixture
def engine(one_engine: tuple[Any, dict[str, torch.Tensor]]) -> Any:
    """The same engine for every test, as it was at the start."""
    engine, start = one_engine
    verl_cpu.as_new(engine, start)
    engine.test_start = start
    return engine


def as_new(engine: Any) -> Any:
    verl_cpu.as_new(engine, engine.test_start)
    return engine


def train(engine: Any, loss: Any, steps: int = 1, **data: Any) -> list[dict[str, Any]]:
    """Steps on other data each, between them the weights before and after."""
    seen = []
    with engine.train_mode():
        for step in range(steps):
            before = weights(engine)
            out = engine.train_batch(verl_cpu.minibatch(seed=step, **data), loss)
            seen.append({"before": before, "after": weights(engine), **out})
    return seen


def recorded(engine: Any, path: Path, *modes: Any, steps: int = 1, **data: Any) -> pd.DataFrame:
    """The token rows of a run with default settings, and the run is closed."""
    changes = modes[0] if modes else {}
    section = {"run_dir": str(path), "strict": True, **changes.pop("entropy_lab", {})}
    config = verl_cpu.actor_config(entropy_lab=section, **changes)
    engine.test_seen = train(engine, verl_cpu.loss_function(config), steps, **data)
    close(engine)
    return load(path).tokens()


def close(engine: Any) -> None:
    from entropy_lab.adapters.verl import recorder_of

    recorder_of(engine).close()


def weights(engine: Any) -> dict[str, torch.Tensor]:
    state = engine.module.state_dict()
    return {k: v.full_tensor().clone() if hasattr(v, "full_tensor") else v.clone()
            for k, v in state.items()}  # fmt: skip


def reference(model: Path, state: dict[str, torch.Tensor], data: Any, temperature: float):
    """{(row, pos): (logp, entropy, m0, m1, m2)} in float64 from the logits of a plain model."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    plain.load_state_dict(state)
    found = {}
    rows = zip(data["input_ids"].unbind(), data["prompts"].unbind(), strict=True)
    for row, (ids, prompt) in enumerate(rows):
        with torch.no_grad():
            logits = plain(ids[None]).logits[0].double() / temperature
        for place in range(len(prompt), len(ids)):
            log_pi = logits[place - 1].log_softmax(-1)
            pi = log_pi.exp()
            moments = [float((pi**2 * log_pi**k).sum()) for k in range(3)]
            values = (float(log_pi[ids[place]]), -float((pi * log_pi).sum()), *moments)
            found[row, place - len(prompt)] = values
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("layout", ["nested", "dense", "dynamic"])
def test_every_token_has_its_row_measured_before_and_after(
    model: Path, engine: Any, tmp_path: Path, layout: str, temperature: float
) -> None:
    more: dict[str, Any] = {"temperature": temperature}
    if layout == "dynamic":
        more |= {"use_dynamic_bsz": True, "max_token_len_per_gpu": 24}
    rows = recorded(engine, tmp_path / "run", nested=layout != "dense", **more)
    data = verl_cpu.minibatch(seed=0)
    seen = engine.test_seen[0]
    before = reference(model, seen["before"], data, temperature)
    after = reference(model, seen["after"], data, temperature)

    wanted = [
        (row, pos)
        for row, mask in enumerate(data["response_mask"].unbind())
        for pos in range(len(mask))
        if mask[pos]
    ]
    assert sorted((u & 0xFFFFF, p) for u, p in zip(rows.uid, rows.pos, strict=True)) == wanted
    for r in rows.itertuples():
        at = (r.uid & 0xFFFFF, r.pos)
        stats = (r.logp, r.entropy, r.m0, r.m1, r.m2)
        assert stats == pytest.approx(before[at], abs=2e-6)
        assert r.dH == pytest.approx(after[at][1] - before[at][1], abs=2e-6)
        assert r.dlogp == pytest.approx(after[at][0] - before[at][0], abs=2e-6)
        for name, key in (
            ("advantage", "advantages"),
            ("old_logp", "old_log_probs"),
            ("rollout_logp", "rollout_log_probs"),
            ("token_id", "responses"),
        ):
            assert getattr(r, name) == pytest.approx(float(data[key].unbind()[at[0]][at[1]]))
    assert rows.dH.abs().max() > 1e-4
    samples = load(tmp_path / "run").samples().sort_values("uid")
    assert samples.reward.tolist() == [0.0, 1.0] * 4
    assert samples.group.nunique() == 4 and samples.truncated.all()
    assert (rows["flags"] == 16).all()  # no response ends with the end token


def test_the_passes_stand_around_the_optimizer_step(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("infer_batch", "optimizer_zero_grad", "optimizer_step"):
        inner = getattr(engine, name)

        def told(*args: Any, _inner: Any = inner, _name: str = name, **kwargs: Any) -> Any:
            calls.append(_name)
            return _inner(*args, **kwargs)

        monkeypatch.setattr(engine, name, told)
    recorded(engine, tmp_path / "run", {"entropy_lab": {"repeat_every": 0}}, steps=2)
    once = ["infer_batch", "optimizer_zero_grad", "optimizer_step", "infer_batch"]
    assert calls[: len(once) * 2] == once * 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"entropy_lab": {"fraction": 0.25}},
        {"entropy_lab": {"every": 3}},
        {"loss_mode": "cispo"},
        {"entropy_coeff": 0.01},
        {"loss_agg_mode": "seq-mean-token-mean", "ppo_micro_batch_size_per_gpu": 4},
    ],
    ids=str,
)
def test_the_weights_are_those_of_a_run_without(
    engine: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    entropy = {"calculate_entropy": "entropy_coeff" in changes}
    end = []
    for path in ("", str(tmp_path / "run")):
        as_new(engine)
        section = {**changes.get("entropy_lab", {}), "run_dir": path, "strict": True}
        config = verl_cpu.actor_config(**{**changes, "entropy_lab": section})
        torch.manual_seed(7)
        end.append((train(engine, verl_cpu.loss_function(config), 10, **entropy), torch.rand(3)))
        if path:
            close(engine)
            assert len(load(path).tokens()) > 40
    (plain, drawn), (probed, drawn_too) = end
    for one, other in zip(plain, probed, strict=True):
        assert all(torch.equal(one["after"][k], other["after"][k]) for k in one["after"])
        assert one["metrics"]["grad_norm"] == other["metrics"]["grad_norm"]
    assert not torch.equal(
        plain[0]["before"]["lm_head.weight"], plain[-1]["after"]["lm_head.weight"]
    )
    assert torch.equal(drawn, drawn_too)


def gradient_on_leaves(rows: pd.DataFrame, data: Any, config: Any) -> dict[tuple[int, int], float]:
    """-dL/dlogp of verl's loss by autograd on leaves that hold the logged log-probabilities."""
    from verl.utils import tensordict_utils as tu

    logged = {(r.uid & 0xFFFFF, r.pos): r.logp for r in rows.itertuples()}
    counts = {"dp_size": 1, "batch_num_tokens": int(data["loss_mask"].sum())}
    found = {}
    for first in range(0, len(data), 2):
        micro = tu.index_select_tensor_dict(data, torch.arange(first, first + 2))
        tu.assign_non_tensor(micro, **counts)
        offsets = micro["input_ids"].offsets()
        flat = torch.zeros(int(offsets[-1]))
        place = {}
        for row, (prompt, ids) in enumerate(
            zip(micro["prompts"].unbind(), micro["input_ids"].unbind(), strict=True)
        ):
            for pos in range(len(ids) - len(prompt)):
                at = int(offsets[row]) + len(prompt) + pos - 1
                place[first + row, pos] = at
                flat[at] = logged.get((first + row, pos), 0.0)
        flat.requires_grad_()
        output = {"log_probs": torch.nested.nested_tensor_from_jagged(flat, offsets)}
        loss, _ = verl_cpu.loss_function(config)(model_output=output, data=micro)
        (gradient,) = torch.autograd.grad(loss, flat)
        found |= {key: -float(gradient[at]) for key, at in place.items()}
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_every_registered_loss_is_measured_as_it_is(engine: Any, tmp_path: Path, name: str) -> None:
    changes = {"loss_mode": name, **SETTINGS[name]}
    if name == "gspo":
        changes["loss_agg_mode"] = "seq-mean-token-mean"
    rows = recorded(engine, tmp_path / "run", dict(changes))
    wanted = gradient_on_leaves(rows, verl_cpu.minibatch(seed=0), verl_cpu.actor_config(**changes))
    got = {(r.uid & 0xFFFFF, r.pos): r.grad_logp for r in rows.itertuples()}
    assert np.array([got[k] for k in got]) == pytest.approx(
        np.array([wanted[k] for k in got]), rel=2e-5, abs=1e-8
    )
    assert max(map(abs, got.values())) > 1e-3
    assert load(tmp_path / "run").info["config"]["method"] == {"name": f"verl:{name}"}


def test_the_registry_has_at_least_ten_of_them() -> None:
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    assert len(set(SETTINGS) & set(POLICY_LOSS_REGISTRY)) >= 10


def test_a_share_of_the_rows_is_chosen_by_seed_and_step_alone(engine: Any, tmp_path: Path) -> None:
    def rows(folder: str, **section: Any) -> pd.DataFrame:
        return recorded(as_new(engine), tmp_path / folder, {"entropy_lab": section}, steps=3)

    whole, some, again = rows("all"), rows("some", fraction=0.3), rows("again", fraction=0.3)
    pd.testing.assert_frame_equal(some, again)
    other = rows("other", fraction=0.3, seed=1)
    assert set(other.uid) != set(some.uid)
    assert some.groupby("step").uid.nunique().tolist() == [
        4,
        4,
        4,
    ]  # 2.4 of 8, in whole micro-batches of 2
    shared = some.merge(whole, on=KEYS, suffixes=("", "_all"))
    assert len(shared) == len(some)
    for name in ("dH", "grad_logp", "dH_pred_cov", "dH_pred_steer", "dH_pred_softmax"):
        assert shared[name].to_numpy() == pytest.approx(shared[f"{name}_all"].to_numpy(), abs=2e-7)
    samples = load(tmp_path / "some").samples()
    assert samples.inclusion_prob.eq(0.5).all()


def test_a_response_keeps_its_uid_in_a_second_epoch(engine: Any, tmp_path: Path) -> None:
    config = verl_cpu.actor_config(entropy_lab={"run_dir": str(tmp_path / "run"), "strict": True})
    loss = verl_cpu.loss_function(config)
    with engine.train_mode():
        for last in (False, True):
            engine.train_batch(verl_cpu.minibatch(seed=0, update_lr_scheduler=last), loss)
        engine.train_batch(verl_cpu.minibatch(seed=0), loss)
    close(engine)
    by_step = [set(g.uid) for _, g in load(tmp_path / "run").tokens().groupby("step")]
    assert by_step[0] == by_step[1] and not by_step[0] & by_step[2]
    steps = load(tmp_path / "run").steps()
    assert steps.age.tolist() == [0, 1, 0] and steps.rollout.tolist() == [0, 0, 1]
    assert len(load(tmp_path / "run").samples()) == 16


def test_without_logits_the_moments_are_left_out(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib

    from entropy_lab.adapters.verl import measure

    whole = recorded(engine, tmp_path / "whole")
    monkeypatch.setattr(measure, "_logits_seen", lambda engine: contextlib.nullcontext())
    rows = recorded(as_new(engine), tmp_path / "run")
    for name in ("entropy", "logp", "dH", "dH_pred_cov", "dH_pred_steer"):
        assert rows[name].to_numpy() == pytest.approx(whole[name].to_numpy(), abs=2e-6)
    assert rows[["m0", "dH_pred_softmax", "dH_pred_softmax_state"]].isna().all().all()


# What goes wrong.


def events(path: Path) -> list[dict[str, Any]]:
    found = sorted((path / "events").glob("*.jsonl"))
    return [json.loads(line) for file in found for line in file.read_text().splitlines()]


class Broken(Exception):
    """The error that the tests below plant."""


@pytest.mark.parametrize("error", [Broken("planted"), torch.OutOfMemoryError("planted")], ids=repr)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failing_pass_never_stops_the_training(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, error: Exception
) -> None:
    from entropy_lab.adapters.verl import recorder as module

    inner, calls = module.measure, []

    def measure(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if when == "before" else 2):
            raise error
        return inner(*args)

    monkeypatch.setattr(module, "measure", measure)
    section = {"run_dir": str(tmp_path / "run"), "repeat_every": 0}
    loss = verl_cpu.loss_function(verl_cpu.actor_config(entropy_lab=section))
    seen = train(engine, loss, 4)
    close(engine)
    run = load(tmp_path / "run")
    assert len(seen) == 4 and run.info["status"] == "finished"
    (event,) = events(tmp_path / "run")
    oom = isinstance(error, torch.OutOfMemoryError)
    assert event["kind"] == ("out_of_memory" if oom else when) and event["step"] == 0
    assert "planted" in event["reason"]
    # The failed step has no rows, the next is left out to back off, then it goes on.
    assert run.steps().probed.tolist() == [False, False, True, True]
    assert sorted(run.tokens().step.unique()) == [2, 3]


def test_strict_raises_what_failed(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entropy_lab.adapters.verl import recorder as module

    def broken(*args: Any) -> None:
        raise Broken("planted")

    monkeypatch.setattr(module, "measure", broken)
    section = {"run_dir": str(tmp_path / "run"), "strict": True}
    loss = verl_cpu.loss_function(verl_cpu.actor_config(entropy_lab=section))
    with pytest.raises(Broken, match="planted"):
        train(engine, loss)


def test_a_full_disk_ends_the_measuring_and_not_the_training(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entropy_lab.record import RunWriter

    def full(self: Any) -> None:
        self._error = RunError("cannot write: No space left on device")
        raise self._error

    section = {"run_dir": str(tmp_path / "run")}
    loss = verl_cpu.loss_function(verl_cpu.actor_config(entropy_lab=section))
    monkeypatch.setattr(RunWriter, "flush", full)
    assert len(train(engine, loss, 3)) == 3
    monkeypatch.undo()
    close(engine)
    assert [e["kind"] for e in events(tmp_path / "run")] == ["write"]
    assert open_run(tmp_path / "run").info["status"] == "failed"


def test_a_folder_that_cannot_be_made_is_said_once(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    section = {"run_dir": str(tmp_path / "file" / "run")}
    loss = verl_cpu.loss_function(verl_cpu.actor_config(entropy_lab=section))
    assert len(train(engine, loss, 2)) == 2
    assert caplog.text.count("NOTHING is recorded; training goes on") == 1


def test_a_skipped_update_has_no_rows(engine: Any, tmp_path: Path) -> None:
    section = {"run_dir": str(tmp_path / "run"), "strict": True}
    inner = verl_cpu.loss_function(verl_cpu.actor_config(entropy_lab=section))
    calls = []

    def loss(**kwargs: Any) -> Any:
        calls.append(1)
        value, metrics = inner(**kwargs)
        return value * (float("nan") if len(calls) == 1 else 1.0), metrics

    loss.keywords = inner.keywords  # type: ignore[attr-defined]
    seen = train(engine, loss, 2)
    close(engine)
    assert torch.equal(seen[0]["before"]["lm_head.weight"], seen[0]["after"]["lm_head.weight"])
    assert [e["kind"] for e in events(tmp_path / "run")] == ["skipped_step"]
    assert load(tmp_path / "run").steps().probed.tolist() == [False, True]


def test_wrong_settings_record_nothing_and_say_so(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    section = {"run_dir": str(tmp_path / "run"), "fractoin": 0.5}
    loss = verl_cpu.loss_function(verl_cpu.actor_config(entropy_lab=section))
    assert len(train(engine, loss)) == 1
    assert "entropy_lab has no setting 'fractoin': did you mean fraction?" in caplog.text
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_touched(engine: Any, tmp_path: Path) -> None:
    for _ in range(2):
        recorded(as_new(engine), tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run-2"]
    assert len(load(tmp_path / "run-2").tokens()) == len(load(tmp_path / "run").tokens())


def test_other_engines_train_as_ever(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic's or a fine-tuning minibatch goes through untouched."""
    data = verl_cpu.minibatch()
    del data["advantages"]
    seen = []
    monkeypatch.setattr(engine, "forward_backward_batch", lambda *a, **k: seen.append(a) or {
        "metrics": {}})  # fmt: skip
    monkeypatch.setattr(engine, "optimizer_step", lambda: 1.0)

    def loss(**kwargs: Any) -> None: ...

    engine.train_batch(data, loss)
    assert seen[0][1] is loss and not any(k.startswith("entropy_lab") for k in data.keys())
