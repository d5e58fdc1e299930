"""Two ranks of verl's FSDP2 engine under gloo, against one rank with all of their responses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl", reason="needs verl: make test-verl")

from safetensors.torch import load_file

import verl_cpu
from entropy_lab import load

pytestmark = pytest.mark.verl
SCRIPT = Path(__file__).parent / "verl_ranks.py"


def run(world: int, folder: Path, name: str) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, str(SCRIPT)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), port, str(folder), name],
            cwd=SCRIPT.parents[1],
            env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    for process in ranks:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    verl_cpu.save_model(folder / "model")
    run(2, folder, "run-of-2")
    run(1, folder, "run-of-1")
    return folder


def test_both_ranks_write_the_rows_of_their_responses(runs: Path) -> None:
    parts = {p.parent.name for p in (runs / "run-of-2" / "tokens").glob("*/*.parquet")}
    assert parts == {"rank=0000", "rank=0001"}
    together, alone = (load(runs / f"run-of-{n}").tokens() for n in (2, 1))
    assert set(together.uid.to_numpy() >> 20 & 0xFFF) == {0, 1}
    keys = ["step", "state", "pos", "token_id", "old_logp"]  # the last one is drawn
    assert len(together) == len(alone) and not together.duplicated(["step", "uid", "pos"]).any()
    both = together.merge(alone, on=keys, suffixes=("", "_alone"))
    assert len(both) == len(together)
    for name in ("logp", "entropy", "dH", "grad_logp", "advantage", "m2", "dlogp"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name}_alone"].to_numpy(), abs=3e-6)
    # N, the means and the repeated states of the closed forms are those of the step of all ranks.
    for form in ("cov", "steer", "softmax", "softmax_state"):
        a, b = both[f"dH_pred_{form}"].to_numpy(), both[f"dH_pred_{form}_alone"].to_numpy()
        assert a == pytest.approx(b, rel=1e-3, abs=1e-9)


def test_the_step_means_are_over_both_ranks(runs: Path) -> None:
    together, alone = (load(runs / f"run-of-{n}").steps() for n in (2, 1))
    for name in ("n_tokens", "entropy_token_mean", "entropy_seq_mean", "dH_train", "grad_norm",
                 "dH_pred_cov", "dH_pos_likely", "share_neg_unlikely", "local_train"):  # fmt: skip
        assert together[name].to_numpy() == pytest.approx(alone[name].to_numpy(), rel=1e-3), name
    samples = load(runs / "run-of-2").samples()
    assert len(samples) == 48 and samples.group.nunique() == 8


def test_two_ranks_train_what_one_trains(runs: Path) -> None:
    together, alone = (load_file(runs / f"run-of-{n}.safetensors") for n in (2, 1))
    for name, value in together.items():
        assert torch.allclose(value, alone[name], atol=1e-5)


def test_a_failure_of_one_rank_drops_the_step_on_both(runs: Path) -> None:
    run(2, runs, "broken")
    together, broken = load(runs / "run-of-2"), load(runs / "broken")
    assert broken.steps().probed.tolist() == [True, False, False]  # failed, then backed off
    (rest,) = (g for step, g in together.tokens().groupby("step") if step == 0)
    assert len(broken.tokens()) == len(rest) and set(broken.tokens().step) == {0}
    events = (runs / "broken" / "events" / "rank=0001.jsonl").read_text().splitlines()
    assert len(events) == 1 and '"step": 1, "kind": "before"' in events[0]
    ours, theirs = (load_file(runs / f"{n}.safetensors") for n in ("broken", "run-of-2"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
