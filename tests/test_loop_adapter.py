"""Other people's loops: GradScaler, several optimizers, DeepSpeed's engine, DDP, Trainer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from entropy_lab import Probe, TokenBatch, load
from entropy_lab.adapters.loop import attach, refuse_sharded, tell
from entropy_lab.analysis.doctor import doctor
from entropy_lab.probe.alarm import Alarm
from toy import Rows, Toy, batches, score_of

ROOT = Path(__file__).parents[1]


def micros(model: nn.Module, step: int, size: int = 8) -> list[tuple[Rows, TokenBatch]]:
    found = []
    for rows, b in batches(model, 100 + step, size):
        with torch.no_grad():
            old = score_of(model)(rows).logp
        found.append((rows, TokenBatch(b.token_id, b.mask, b.advantage, old)))
    return found


def loss_of(stats: Any, batch: TokenBatch) -> torch.Tensor:
    ratio = torch.exp(stats.logp - batch.old_logp)
    return -(ratio * batch.advantage * batch.mask).mean()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def honest(run_dir: Path) -> None:
    assert not [f for f in doctor(run_dir).findings if f.level == "error"]


def scaled(run_dir: Path | None, fused: bool, scale: bool, **options: Any) -> list[torch.Tensor]:
    """Five iterations, the second of which overflows and is skipped."""
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scale)
    score = score_of(model)
    probe = attach(model, optimizer, run_dir, score, scaler=scaler, **options) if run_dir else None
    for step in range(5):
        for rows, batch in micros(model, step):
            stats = probe.record(rows, batch) if probe else score(rows)
            loss = loss_of(stats, batch)
            scaler.scale(loss * float("inf") if step == 1 and scale else loss).backward()
        if scale or step != 1:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    if probe:
        probe.close()
        assert "update" not in vars(scaler)  # the wrap is off
    return weights(model)


@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_the_loss_scale_is_out_of_everything_and_skipped_updates_are_noticed(
    tmp_path: Path, fused: bool
) -> None:
    options = {"deep_every": 1, "floor_every": 1}
    plain = scaled(None, fused, True)
    assert equal(scaled(tmp_path / "scaled", fused, True, **options), plain)
    assert equal(scaled(tmp_path / "plain", fused, False, **options), plain)  # scales are 2^n
    scaled_run, plain_run = load(tmp_path / "scaled"), load(tmp_path / "plain")
    assert scaled_run.events()["kind"].tolist() == ["skipped_step"]
    a, b = scaled_run.tokens(), plain_run.tokens()
    assert len(a) == len(b) > 0 and (a["dH"] != 0).any()
    for name in ("grad_logp", "grad_entropy", "dH", "influence", "dH_pred_jvp_grad"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-9, err_msg=name)
    steps = scaled_run.steps()
    assert len(steps) == 4 and (steps["gradient_audit"] < 1e-5).all()
    assert (steps["identity_error"] < 1e-3).all()
    honest(tmp_path / "scaled")


def optimized(run_dir: Path | None, split: bool, forget: int = -1) -> list[torch.Tensor]:
    model = Toy()
    groups = [model.embed, model.mix, model.head]
    parts = [[p for m in groups for p in m.parameters()]]
    if split:
        parts = [list(model.head.parameters()), [p for m in groups[:2] for p in m.parameters()]]
    optimizers = [torch.optim.AdamW(p, lr=1e-2) for p in parts]
    score = score_of(model)
    given = optimizers if split else optimizers[0]
    probe = Probe(model, given, run_dir, score, deep_every=1) if run_dir else None
    for step in range(3):
        for rows, batch in micros(model, step):
            loss_of(probe.record(rows, batch) if probe else score(rows), batch).backward()
        for number, optimizer in enumerate(optimizers):
            if not (step == forget and number == 1):
                optimizer.step()
            optimizer.zero_grad()
    if probe:
        probe.close()
    return weights(model)


def test_several_optimizers_take_one_step(tmp_path: Path) -> None:
    plain = optimized(None, split=True)
    assert equal(optimized(tmp_path / "two", split=True), plain)
    assert equal(optimized(tmp_path / "one", split=False), plain)
    one, two = load(tmp_path / "one").tokens(), load(tmp_path / "two").tokens()
    for name in one.columns:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-10, err_msg=name)
    assert load(tmp_path / "two").events().empty
    honest(tmp_path / "two")


def test_an_optimizer_that_did_not_step_is_an_event(tmp_path: Path) -> None:
    plain = optimized(None, split=True, forget=1)
    assert equal(optimized(tmp_path / "run", split=True, forget=1), plain)
    events = load(tmp_path / "run").events()
    assert events["kind"].tolist() == ["not_all_stepped"] and events["step"].tolist() == [1]
    assert len(load(tmp_path / "run").metrics()) == 3


class Engine:
    """A stand-in for DeepSpeed's engine, ZeRO stage 1: `step` is called for every micro-batch and
    acts at the boundary; the optimizer moves float32 masters, group by group, and the module's
    own weights are copied from them only afterwards; an overflow skips the update."""

    def __init__(self, module: nn.Module, accumulate: int) -> None:
        self.module, self._every, self._micro = module, accumulate, 0
        self.skipped_steps = 0
        self.groups = [[p] for p in module.parameters()]
        self.masters = [[p.detach().clone() for p in g] for g in self.groups]
        self.inner = [torch.optim.AdamW(m, lr=1e-2) for m in self.masters]
        self.optimizer = SimpleNamespace(loss_scale=1024.0, optimizer=self.inner[0])

    def get_lr(self) -> list[float]:
        return [1e-2]

    def is_gradient_accumulation_boundary(self) -> bool:
        return (self._micro + 1) % self._every == 0

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.optimizer.loss_scale / self._every).backward()

    def step(self) -> None:
        boundary = self.is_gradient_accumulation_boundary()
        self._micro += 1
        if not boundary:
            return
        grads = [[p.grad / self.optimizer.loss_scale for p in g] for g in self.groups]
        if not all(bool(x.isfinite().all()) for g in grads for x in g):
            self.skipped_steps += 1
        else:
            for optimizer, masters, own in zip(self.inner, self.masters, grads, strict=True):
                for m, g in zip(masters, own, strict=True):
                    m.grad = g
                optimizer.step()  # the module's weights are stale in its hooks
            with torch.no_grad():
                for group, masters in zip(self.groups, self.masters, strict=True):
                    for p, m in zip(group, masters, strict=True):
                        p.copy_(m)
        for p in self.module.parameters():
            p.grad = None


def on_engine(run_dir: Path | None) -> list[torch.Tensor]:
    model = Toy()
    engine = Engine(model, accumulate=2)
    score = score_of(model)
    probe = attach(model, [], run_dir, score, engine=engine) if run_dir else None
    for step in range(4):
        for rows, batch in micros(model, step):
            loss = loss_of(probe.record(rows, batch) if probe else score(rows), batch)
            engine.backward(loss * float("nan") if step == 2 else loss)
            engine.step()
    if probe:
        probe.close()
        assert "step" not in vars(engine)
    return weights(model)


def test_deepspeeds_step_is_measured_around_the_engine(tmp_path: Path) -> None:
    """Against the same loop with one plain optimizer on the mean of the two losses."""
    assert equal(on_engine(tmp_path / "run"), on_engine(None))
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with Probe(model, optimizer, tmp_path / "plain", score_of(model)) as probe:
        for step in (0, 1, 3):
            for rows, batch in micros(model, step):
                (loss_of(probe.record(rows, batch), batch) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    a, b = load(tmp_path / "run").tokens(), load(tmp_path / "plain").tokens()
    assert (a["dH"] != 0).any() and len(a) == len(b)
    for name in ("dH", "grad_logp", "dH_pred_softmax", "entropy"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-9, err_msg=name)
    assert "skipped_step" in load(tmp_path / "run").events()["kind"].tolist()
    assert (load(tmp_path / "run").steps()["lr"] == 1e-2).all()
    honest(tmp_path / "run")


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    model = Toy()
    engine = Engine(model, 1)
    own = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"pass \[\] as the optimizer"):
        attach(model, own, tmp_path / "a", score_of(model), engine=engine)
    with pytest.raises(ValueError, match="influence need one process and the optimizers themsel"):
        attach(model, [], tmp_path / "b", score_of(model), engine=engine, deep_every=1)
    model.head.bias.ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="ZeRO stage 3 .* set floor_every=0"):
        attach(model, [], tmp_path / "c", score_of(model), engine=engine, floor_every=5)
    wrapper = type("DeepSpeedZeroOptimizer", (), {"optimizer": own})()
    with pytest.raises(ValueError, match="DeepSpeedZeroOptimizer steps inside .* engine=engine"):
        Probe(model, wrapper, tmp_path / "d", score_of(model))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int is no torch.optim.Optimizer"):
        Probe(model, 3, tmp_path / "e", score_of(model))  # type: ignore[arg-type]
    sharded = SimpleNamespace(data=type("DTensor", (), {})())
    with pytest.raises(ValueError, match=r"parameter w is sharded \(FSDP2\)"):
        refuse_sharded(SimpleNamespace(named_parameters=lambda: [("w", sharded)]))  # type: ignore
    assert not list(tmp_path.iterdir())  # nothing was begun


def two_ranks(tmp_path: Path, run_dir: str, name: str) -> list[list[torch.Tensor]]:
    out, store = tmp_path / name, tmp_path / f"store-{name}"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    args = [str(ROOT / "tests" / "loop_ranks.py")]
    both = [
        subprocess.Popen([sys.executable, *args, str(r), str(store), run_dir, str(out)],
                         env=env, stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]  # fmt: skip
    said = [p.communicate(timeout=240)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    return [torch.load(f"{out}-{r}.pt") for r in range(2)]


def test_replicas_log_their_own_rows_and_one_row_a_step(tmp_path: Path) -> None:
    plain = two_ranks(tmp_path, "-", "plain")
    probed = two_ranks(tmp_path, str(tmp_path / "run"), "probed")
    assert all(equal(a, b) for a, b in zip(plain, probed, strict=True))  # the buffer too
    run = load(tmp_path / "run")
    assert run.info["world_size"] == 2 and run.events().empty
    tokens, steps = run.tokens(), run.steps().set_index("step")
    assert len(run.token_files) == 2 and set(tokens["micro"]) == {0, 1}
    for step, rows in tokens.groupby("step"):
        assert len(rows) == steps["n_tokens"][step] == steps["n_probed"][step]
        assert rows["uid"].nunique() == 32
        for name in ("dH", "dH_pred_softmax", "entropy"):
            said = {"dH": "dH_train", "entropy": "entropy_token_mean"}.get(name, name)
            assert steps[said][step] == pytest.approx(rows[name].mean(), rel=1e-4)
    # c is that of the mean of both losses: -dL/dlogp = advantage / (2 * 16 * T) at ratio 1.
    first = tokens[tokens["step"] == 0]
    np.testing.assert_allclose(first["grad_logp"], first["advantage"] / (2 * 16 * 5), rtol=1e-4)
    honest(tmp_path / "run")


def test_an_alarm_reaches_each_kind_of_tracker() -> None:
    alarm = Alarm(7, "entropy halves in about 40 steps", 40.0, -0.01, None)
    heard: list[Any] = []

    class Run:  # wandb's, and trackio as a module
        def alert(self, title: str, text: str, level: Any = None) -> None:
            heard.append((title, text))

    class Writer:
        def add_text(self, tag: str, text: str, step: int) -> None:
            heard.append((tag, text, step))

    tell(Run())(alarm)
    tell(Writer())(alarm)
    assert heard == [
        ("entropy collapse", "step 7: entropy halves in about 40 steps"),
        ("entropy collapse", "entropy halves in about 40 steps", 7),
    ]
    with pytest.raises(TypeError, match="object has neither alert"):
        tell(object())


def test_the_alarm_rings_once_where_entropy_falls(tmp_path: Path) -> None:
    model, heard = Toy(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    score = score_of(model)
    with Probe(model, optimizer, tmp_path / "run", score, on_alarm=heard.append) as probe:
        for step in range(14):
            for rows, batch in micros(model, step, 16):
                (probe.record(rows, batch).entropy * batch.mask).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(heard) == 1 and heard[0].slope < 0 and "entropy halves" in heard[0].text
    assert load(tmp_path / "run").metrics()["alarm"].tolist().index(True) == heard[0].step


def run_example(text: str, folder: Path) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "grpo_loop.py", "exec"), namespace)  # noqa: S102 - our own text
    return namespace


def test_the_example_is_three_lines_away_from_a_loop_without_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "examples" / "grpo_loop.py").read_text()
    text = text.replace("EPOCHS, MICRO = 10, 40, 2, 32", "EPOCHS, MICRO = 10, 3, 2, 32")
    monkeypatch.setattr(sys, "argv", ["grpo_loop.py", str(tmp_path / "run")])
    ours = run_example(text, tmp_path)
    bare = text.replace("stats = probe.record(mine, batch)  # probe, in place of score(mine)",
                        "stats = score(mine)")  # fmt: skip
    bare = bare.replace("Probe, TokenBatch, token_stats  # probe", "token_stats")
    bare = re.sub(r"^.*# probe$\n", "", bare, flags=re.M)
    assert "probe" not in bare.split('"""', 2)[2]
    assert equal(weights(run_example(bare, tmp_path)["model"]), weights(ours["model"]))
    assert len(load(tmp_path / "run").metrics()) == 6
    honest(tmp_path / "run")


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from entropy_lab import token_stats

    def train(run_dir: Path | None, saving: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=11, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
        model = LlamaForCausalLM(config).train()
        if saving:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def score(rows: Rows):
            return token_stats(model(rows.ids).logits[:, 2:-1], rows.ids[:, 3:])

        probe = Probe(model, optimizer, run_dir, score, deep_every=2) if run_dir else None
        for step in range(2):
            for rows, b in batches(Toy(), 100 + step, 8):
                with torch.no_grad():
                    old = score(rows).logp
                batch = TokenBatch(b.token_id, b.mask, b.advantage, old)
                loss_of(probe.record(rows, batch) if probe else score(rows), batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        if probe:
            probe.close()
        return weights(model)

    plain = train(None, True)
    assert equal(train(tmp_path / "saving", True), plain)
    assert equal(train(tmp_path / "kept", False), plain)
    a, b = load(tmp_path / "saving").tokens(), load(tmp_path / "kept").tokens()
    assert np.array_equal(a["dH"], b["dH"]) and load(tmp_path / "saving").events().empty
    np.testing.assert_allclose(a["influence"], b["influence"], rtol=1e-5, atol=1e-9)


def test_a_subclass_of_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks of the innermost optimizer, where accelerate has wrapped it."""
    pytest.importorskip("accelerate")
    page = (ROOT / "docs" / "hf_trainer.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    ours = run_example(block, tmp_path)
    bare = run_example(block.replace("PROBED = True", "PROBED = False"), tmp_path)
    assert bare["trainer"].probe is None
    assert equal(weights(ours["model"]), weights(bare["model"]))
    run = load(tmp_path / "runs" / "trainer")
    assert len(run.metrics()) == 3 and run.events().empty
    assert (run.steps()["n_tokens"] == 24).all()  # both micro-batches of a step
    honest(run.path)
