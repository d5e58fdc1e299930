"""The probe's cost: what is announced equals passes that are counted, what is told is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from entropy_lab.probe.cost import reported
from entropy_lab.train import parts as run_parts
from entropy_lab.train.config import load_config
from entropy_lab.train.cost import announced, estimated_cost, measured_cost
from entropy_lab.train.launch import run_training
from tiny import TINY

SIZE = 8.0  # responses of a minibatch of TINY
BASE = [*TINY, "probe.floor_every=100", "probe.deep_every=0"]
ROWS = {
    "everything": [],
    "own rows": ["probe.held_out=false", "probe.fixed_responses=0"],
    "a fraction": ["probe.fraction=0.5"],
    "every third": ["probe.every=3"],
    "four minibatches": ["train.minibatches=4", "rollout.prompts=8"],
}


def counted(monkeypatch: pytest.MonkeyPatch, out: Path, settings: list[str]) -> int:
    """Responses that went through a pass without gradients, sampling left aside."""
    rows = []
    make = run_parts.make_score

    def counting(*args, **settings):
        score = make(*args, **settings)

        def wrapped(inputs):
            if not torch.is_grad_enabled():
                rows.append(len(inputs.token_id))
            return score(inputs)

        return wrapped

    monkeypatch.setattr(run_parts, "make_score", counting)
    run_training(None, settings, out)
    return sum(rows)


@pytest.mark.parametrize("case", ROWS)
def test_the_announced_cost_is_that_of_the_passes(case: str, tmp_path: Path, monkeypatch) -> None:
    settings = [*BASE, *ROWS[case]]
    with_probe = counted(monkeypatch, tmp_path / "with", settings)
    without = counted(monkeypatch, tmp_path / "without", [*settings, "probe.enabled=false"])
    parts = estimated_cost(load_config(None, settings))
    minibatches = 4 if case == "four minibatches" else 2
    steps = 6 * minibatches
    # Forward and backward, without the forward of the first of two micro-batches of a rollout.
    update = 3 - 1 / 2 / minibatches
    forwards = sum(v for k, v in parts.items() if k != "checks") * update * steps * SIZE
    # Beside the announced: the comparison with the loss forward, the start of the fixed set and
    # the checks, all at step 0; with every > 1 which ages are probed is a matter of divisibility.
    start = 16 + 3 * SIZE
    slack = SIZE * (6 if case == "every third" else 0)
    assert forwards - slack <= with_probe - without <= forwards + start + slack


@pytest.mark.parametrize(
    ("settings", "update"),
    [
        ([], 2.75),  # the first of two micro-batches in the first of two minibatches
        (["train.micro_batch=8"], 2.5),
        (["train.micro_batch=64"], 2.5),
        (["train.micro_tokens=100"], 3.0),  # how many rows it has is not known
        (["method.name=steer"], 4.0),  # its statistics pass is one more
    ],
)
def test_the_first_forward_is_the_old_logprob_pass(settings: list[str], update: float) -> None:
    own = estimated_cost(load_config(None, [*BASE, *settings]))["own"]
    assert own == pytest.approx(1 / update)


def test_the_line_before_a_run_and_the_line_after(tmp_path: Path, capsys) -> None:
    out = run_training(None, [*BASE, "train.rollouts=2"], tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("probe: about 94% on top")
    assert "the step's rows 36%, held-out rows 18%, the fixed set 36%" in lines[0]
    told = next(line for line in lines if line.startswith("probe: measured "))
    cost = json.loads((out / "run.json").read_text())["probe_cost"]
    assert told == reported(cost)
    metrics = pd.read_json(out / "metrics.jsonl", lines=True)
    assert cost["probe_s"] == pytest.approx(metrics["time_probe"].sum())
    assert 0 < cost["share"] == cost["probe_s"] / cost["update_s"]
    assert (metrics["time_probe"] < metrics["time_update"]).all()


def test_without_a_probe_there_is_nothing_to_tell(tmp_path: Path, capsys) -> None:
    off = [*BASE, "train.rollouts=1", "probe.enabled=false"]
    assert announced(load_config(None, off)) == "" and measured_cost(pd.DataFrame()) == {}
    out = run_training(None, off, tmp_path / "run")
    assert "probe:" not in capsys.readouterr().out
    assert "probe_cost" not in json.loads((out / "run.json").read_text())
    run_training(None, off, None, dry_run=True)
    assert "# probe: off" in capsys.readouterr().out
