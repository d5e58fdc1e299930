"""What goes wrong in a probe, or around it, stays out of the training and gets into the log."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from entropy_lab import Probe, load
from entropy_lab.analysis.doctor import doctor
from entropy_lab.probe import memory
from entropy_lab.probe.memory import MemoryCap, OverCapError, is_out_of_memory
from entropy_lab.record import parts as record_parts
from entropy_lab.record import window as record_window
from entropy_lab.types import TokenBatch
from toy import Rows, Toy, batches, score_of


def micros(model: torch.nn.Module, step: int, size: int = 8) -> list[tuple[Rows, TokenBatch]]:
    """Micro-batches whose old_logp is the model's own, as doctor expects of an honest loop."""
    found = []
    for rows, b in batches(model, 100 + step, size):
        with torch.no_grad():
            old = score_of(model)(rows).logp
        found.append((rows, TokenBatch(b.token_id, b.mask, b.advantage, old)))
    return found


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(
    run_dir: Path | None,
    *,
    steps: int = 4,
    score: Callable | None = None,
    spoil: Callable[[int, torch.Tensor], torch.Tensor] = lambda step, loss: loss,
    skip: tuple[int, ...] = (),
    **options,
) -> tuple[list[torch.Tensor], Probe | None]:
    """Four steps of two micro-batches; the weights at their end and the probe, closed."""
    model = Toy()
    optimizer = adamw(model)
    own = score_of(model)
    scored = (lambda rows: score(own, rows)) if score else own
    probe = Probe(model, optimizer, run_dir, scored, **options) if run_dir else None
    for step in range(steps):
        for rows, batch in micros(model, step):
            stats = probe.record(rows, batch) if probe else own(rows)
            ratio = torch.exp(stats.logp - batch.old_logp)
            spoil(step, -(ratio * batch.advantage * batch.mask).mean()).backward()
        if step not in skip:
            optimizer.step()
        optimizer.zero_grad()
    if probe:
        probe.close()
    return [p.detach().clone() for p in model.parameters()], probe


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) or bool((x.isnan() == y.isnan()).all() and x.isnan().any())
               for x, y in zip(a, b, strict=True))  # fmt: skip


def failing(error: Exception, when: Callable[[int], bool]) -> Callable:
    """A score that raises in those of the probe's own passes (they run without gradients)."""
    count = -1

    def score(own: Callable, rows: Rows):
        nonlocal count
        if not torch.is_grad_enabled():
            count += 1
            if when(count):
                raise error
        return own(rows)

    return score


def kinds(run_dir: Path) -> list[str]:
    return [e["kind"] for e in load(run_dir).events().to_dict("records")]


def readable(run_dir: Path, status: str, steps: int = 4) -> None:
    """Doctor reads the directory and finds no error in it; its lines are those of the steps."""
    run = load(run_dir)
    assert run.info["status"] == status and len(run.metrics()) == steps
    errors = [f for f in doctor(run_dir).findings if f.level == "error"]
    assert not errors, errors


@pytest.mark.parametrize("when", [0, 1, 3], ids=["first pass", "repeat check", "second pass"])
def test_an_error_in_the_probes_pass_costs_the_step(tmp_path: Path, when: int, caplog) -> None:
    plain, _ = train(None)
    score = failing(ZeroDivisionError("no kernel"), lambda n: n == when)
    weights, probe = train(tmp_path / "run", score=score, fraction=0.5)
    assert same(weights, plain)
    readable(tmp_path / "run", "finished")
    run = load(tmp_path / "run")
    event = run.events().iloc[0]
    [told] = [f for f in doctor(run.path).findings if f.check == "events"]
    assert told.level == "warning" and "ZeroDivisionError no kernel" in told.seen
    assert event["error"] == "ZeroDivisionError" and event["reason"] == "no kernel"
    told = [r.getMessage() for r in caplog.records if r.name == "entropy_lab.probe"]
    assert len(told) == 1 and "no kernel" in told[0] and "training goes on" in told[0]
    probed = run.steps()["probed"].tolist()
    if when == 1:  # the check is lost, the measurement is not
        assert event["kind"] == "checks" and all(probed)
    else:
        assert probed == [False, True, True, True]
        assert run.metrics()["probe_failed"][0] == event["kind"] in ("before", "after")
        assert run.steps()["entropy_token_mean"].notna().all()


def test_strict_raises(tmp_path: Path) -> None:
    score = failing(ZeroDivisionError("no kernel"), lambda n: n == 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", score=score, strict=True)


def test_a_probe_that_always_fails_gives_up_and_is_told_of_once(tmp_path: Path, caplog) -> None:
    calls = 0

    def score(own: Callable, rows: Rows):
        nonlocal calls
        if not torch.is_grad_enabled():
            calls += 1
            raise ValueError("broken")
        return own(rows)

    plain, _ = train(None, steps=12)
    weights, probe = train(tmp_path / "run", steps=12, score=score)
    assert same(weights, plain) and calls == 8  # one for each of 8 steps, then no more
    readable(tmp_path / "run", "finished", 12)
    assert kinds(tmp_path / "run") == ["before"] * 8 + ["backed_off"]
    told = [r for r in caplog.records if r.name == "entropy_lab.probe"]
    assert len(told) == 2  # the error, and that it was given up


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
              RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
    ids=["cuda", "python", "cpu"],
)  # fmt: skip
def test_out_of_memory_takes_half_the_rows_from_then_on(tmp_path: Path, error: Exception) -> None:
    plain, _ = train(None)
    score = failing(error, lambda n: n == 0)
    weights, probe = train(tmp_path / "run", score=score, floor_every=0)
    assert same(weights, plain) and is_out_of_memory(error)
    readable(tmp_path / "run", "finished")
    run = load(tmp_path / "run")
    assert kinds(tmp_path / "run") == ["out_of_memory", "backed_off"]
    assert "fraction is 0.5 from here" in run.events()["reason"][1]
    steps = run.steps()
    assert steps["probed"].tolist() == [False, True, True, True]
    assert steps["inclusion_prob"].tolist()[1:] == [0.5] * 3
    assert run.tokens().groupby("step")["uid"].nunique().to_dict() == {1: 8, 2: 8, 3: 8}


def test_memory_that_never_suffices_ends_the_measuring(tmp_path: Path) -> None:
    plain, _ = train(None, steps=6)
    score = failing(MemoryError("none left"), lambda n: True)
    weights, probe = train(tmp_path / "run", steps=6, score=score)
    assert same(weights, plain) and probe is not None
    # 8 responses a micro-batch: all, a half, a quarter, an eighth, then nothing.
    assert kinds(tmp_path / "run") == ["out_of_memory", "backed_off"] * 4
    assert probe.cadence.every == 0
    readable(tmp_path / "run", "finished", 6)


def test_path_forms_that_do_not_fit_are_given_up_alone(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("entropy_lab.probe.around.begin", full)
    plain, _ = train(None)
    weights, probe = train(tmp_path / "run", deep_every=1, floor_every=0)
    assert same(weights, plain) and probe is not None and probe.cadence.deep_every == 0
    assert kinds(tmp_path / "run") == ["out_of_memory", "backed_off"]
    assert load(tmp_path / "run").steps()["probed"].all()


def test_a_cap_on_a_cpu_is_noticed_by_the_peak_of_the_process(monkeypatch) -> None:
    peak = iter([1_000, 1_000 + 2 * 10**9, 5_000, 5_000])
    monkeypatch.setattr(memory, "peak_bytes", lambda: next(peak))
    cap = MemoryCap(1.0, None, torch.device("cpu"))
    with pytest.raises(OverCapError, match="took 2.00 GB and max_memory_gb is 1"), cap.applied():
        pass
    with cap.applied():
        pass
    assert memory.peak_bytes is not None
    with pytest.raises(ValueError, match="max_memory_gb must be above 0, got -1"):
        MemoryCap(-1, None, torch.device("cpu"))
    with pytest.raises(ValueError, match="a share of a CUDA device, and the model is on cpu"):
        MemoryCap(None, 0.5, torch.device("cpu"))


def test_a_full_disk_ends_the_log_and_not_the_training(tmp_path: Path, monkeypatch) -> None:
    """Parts cannot be written any more; a short line still can, as on a disk that is just full."""
    plain, _ = train(None, steps=40)

    def no_space(table, path):
        raise record_parts.write_error(OSError(28, os.strerror(28)), path)

    monkeypatch.setattr(record_window, "write_table", no_space)
    weights, probe = train(tmp_path / "run", steps=40)
    assert same(weights, plain) and probe is not None
    monkeypatch.undo()
    run = load(tmp_path / "run")
    assert run.info["status"] == "failed"
    found = run.events()
    assert found["kind"].tolist()[:2] == ["log", "log_ended"]
    assert "No space left" in found["reason"][0]
    unlogged = 40 - len(run.metrics())
    assert unlogged > 0 and f"{unlogged} later steps" in found["reason"].iloc[-1]
    assert not [f for f in doctor(tmp_path / "run").findings if f.level == "error"]


def test_a_disk_that_stands_still_does_not_hold_up_the_training(
    tmp_path: Path, monkeypatch
) -> None:
    plain, _ = train(None, steps=80)
    write, moves_again = record_window.write_table, threading.Event()

    def stuck(table, path):
        moves_again.wait(60)
        write(table, path)

    def last(step: int, loss: torch.Tensor) -> torch.Tensor:
        if step == 79:  # all windows but the last have been handed over by now
            assert not (tmp_path / "run" / "steps" / "part-00000000-00000015.parquet").exists()
            moves_again.set()
        return loss

    monkeypatch.setattr(record_window, "write_table", stuck)
    weights, _ = train(tmp_path / "run", steps=80, every=2, spoil=last)
    assert same(weights, plain)
    run = load(tmp_path / "run")
    assert run.info["dropped_windows"] >= 2
    readable(tmp_path / "run", "finished", 80)


def test_a_nan_loss_is_an_event(tmp_path: Path) -> None:
    def spoil(step: int, loss: torch.Tensor) -> torch.Tensor:
        return loss * float("nan") if step == 2 else loss

    plain, _ = train(None, spoil=spoil)
    weights, _ = train(tmp_path / "run", spoil=spoil, floor_every=1, deep_every=1)
    assert same(weights, plain)
    run = load(tmp_path / "run")
    assert {(e.step, e.kind) for e in run.events().itertuples()} >= {(2, "not_finite")}
    assert len(run.metrics()) == 4 and run.info["status"] == "finished"
    doctor(tmp_path / "run")  # reads it; NaN weights are not believable, and it may say so


def test_a_skipped_update_is_noticed(tmp_path: Path) -> None:
    """The loop zeroes its gradients without a step; the next window must not hold its rows."""
    plain, _ = train(None, skip=(1, 3))
    weights, _ = train(tmp_path / "run", skip=(1, 3))
    assert same(weights, plain)
    readable(tmp_path / "run", "finished", 2)
    assert kinds(tmp_path / "run") == ["skipped_step"] * 2
    sizes = [sum(int(b.mask.sum()) for _, b in batches(Toy(), 100 + s, 8)) for s in (0, 2)]
    assert load(tmp_path / "run").steps()["n_tokens"].tolist() == sizes


def test_rows_that_cannot_be_right_are_left_out(tmp_path: Path) -> None:
    model = Toy()
    optimizer = adamw(model)
    with Probe(model, optimizer, tmp_path / "run", score_of(model)) as probe:
        for step in range(2):
            rows, batch = micros(model, step, 16)[0]
            if step == 0:
                batch = replace(batch, advantage=torch.full_like(batch.advantage, float("inf")))
            stats = probe.record(rows, batch)
            probe.annotate(weight=1.0)
            (-(stats.logp * batch.advantage.nan_to_num(posinf=0) * batch.mask).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert kinds(tmp_path / "run")[0] == "record"
    run = load(tmp_path / "run")
    assert run.metrics()["probe_failed"].tolist()[0] == "record"
    assert set(run.tokens()["step"]) == {1}
    readable(tmp_path / "run", "finished", 2)


def test_a_listener_that_fails_is_an_event(tmp_path: Path) -> None:
    def broken(alarm) -> None:
        raise OSError("no network")

    def fall(step: int, loss: torch.Tensor) -> torch.Tensor:
        return loss

    weights, probe = train(tmp_path / "run", spoil=fall, on_alarm=broken)
    assert probe is not None
    probe.log._line = {"step": 9, "alarm": True, "alarm_half_steps": 3.0, "alarm_slope": -1.0,
                       "alarm_quadrant": None}  # fmt: skip
    probe.log._ring(9)
    assert kinds(tmp_path / "run") == ["on_alarm"]


LOOP = """
import sys, torch
sys.path.insert(0, {tests!r})
import torch
from test_faults import micros
from toy import Toy, score_of
from entropy_lab import Probe
model = Toy()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
probe = Probe(model, optimizer, {run!r}, score_of(model))
for step in range(4):
    rows, batch = micros(model, step, 16)[0]
    (-(probe.record(rows, batch).logp * batch.advantage * batch.mask).mean()).backward()
    if step == 3:
        {ending}
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [("raise KeyboardInterrupt", "interrupted", 130), ("1 / 0", "failed", 1),
     ("break", "finished", 0)],
)  # fmt: skip
def test_a_loop_that_never_closes_its_probe_leaves_a_whole_run(
    tmp_path: Path, ending: str, status: str, code: int
) -> None:
    text = LOOP.format(tests=str(Path(__file__).parent), run=str(tmp_path / "run"), ending=ending)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert abs(done.returncode) in (code, 2), done.stderr
    readable(tmp_path / "run", status, 3)
    assert "on top of the updates" in done.stderr
    cost = json.loads((tmp_path / "run" / "run.json").read_text())["probe_cost"]
    assert 0 < cost["share_of_run"] and cost["probe_s"] > 0


def test_ctrl_c_in_the_probe_passes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        model = Toy()
        optimizer = adamw(model)
        own = score_of(model)
        score = failing(KeyboardInterrupt(), lambda n: n == 5)  # type: ignore[arg-type]
        with Probe(model, optimizer, tmp_path / "run", lambda r: score(own, r)) as probe:
            for step in range(9):
                rows, batch = micros(model, step, 16)[0]
                (-(probe.record(rows, batch).logp * batch.advantage * batch.mask).mean()).backward()
                optimizer.step()
                optimizer.zero_grad()
    run = load(tmp_path / "run")
    assert run.info["status"] == "interrupted"
    assert not [f for f in doctor(tmp_path / "run").findings if f.level == "error"]


def test_the_log_says_nothing_of_a_healthy_run(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        train(tmp_path / "run")
    assert not [r for r in caplog.records if r.name.startswith("entropy_lab")]
    assert load(tmp_path / "run").events().empty
    assert not (tmp_path / "run" / "events").exists()
