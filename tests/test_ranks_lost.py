"""A rank that is killed, hangs or runs out of memory: the other says so and ends, and the run can
be continued. The same of Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entropy_lab import load
from entropy_lab.analysis.doctor import doctor
from entropy_lab.errors import ConfigError
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.parallel.start import check_several, rank_and_size, ranks_of_run
from entropy_lab.train.parallel.watch import Beat, Seen, Watch
from ranks import Job, allocate, hang, kill, sleepy, start_ranks
from tiny import TINY

SETTINGS = [
    *TINY,
    "train.rollouts=40",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=2",
    "train.hang_timeout=8",
    "probe.fixed_responses=0",
]


def ended(ranks: list[tuple[Any, Path]]) -> list[tuple[int, str]]:
    """(exit code, stderr) of every rank."""
    for process, _ in ranks:
        process.join(600)
        assert process.exitcode is not None, "a rank is still there"
    return [(process.exitcode, errors.read_text()) for process, errors in ranks]


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (kill, "was killed or has crashed"),
        (hang, "it hangs in "),
        (allocate, "out of memory (you tried to allocate"),
    ],
)
def test_the_others_of_a_lost_rank_name_it_and_end(
    tmp_path: Path, plant: Callable[[int], None], reason: str
) -> None:
    out = tmp_path / "run"
    ranks = start_ranks([Job(SETTINGS, out, before=plant)], 2, command=True)
    (code, said), (other, _) = ended(ranks)
    assert code == 1 and other != 0
    [line] = [text for text in said.splitlines() if "because of rank 1" in text]
    assert line.startswith("error: rank 0 stops, because of rank 1: ") and reason in line
    run = load(out)
    assert run.info["status"] == "failed" and run.last_step == 1
    assert not [f for f in doctor(out).findings if f.level == "error"]
    if plant is kill:
        more = ["train.rollouts=2"]
        assert load(run_training(None, more, out, resume=True)).last_step == 3
        assert doctor(out).healthy


def test_ctrl_c_stops_all_ranks_after_the_rollout(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ranks = start_ranks([Job(SETTINGS, out, before=sleepy)], 2, command=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (out / "checkpoints" / "step-000002").exists():
        time.sleep(0.1)
    for process, _ in ranks:
        os.kill(process.pid, signal.SIGINT)
    (code, said), (other, quiet) = ended(ranks)
    assert code == other == 130
    assert "stopped and saved; continue with: entropy-lab train --resume --out" in said
    assert quiet == ""
    run = load(out)
    assert run.info["status"] == "interrupted"
    last = sorted((out / "checkpoints").iterdir())[-1]
    assert last.name == f"step-{run.last_step + 1:06d}"
    assert doctor(out).healthy


def seen(rank: int, ticks: int, waits: bool) -> Seen:
    return Seen(Beat(1, ticks, waits, f"phase {rank}", "host", 1), beating=0.0, moving=0.0)


def test_the_rank_that_waits_is_not_the_one_that_hangs() -> None:
    watch = Watch(0, 3, lambda: None, limit=10.0, ended=lambda status, first: None)
    others = {0: seen(0, 7, True), 1: seen(1, 8, False), 2: seen(2, 6, True)}
    assert watch._stuck(others, now=9.0) is None
    assert watch._stuck({0: others[0], 1: others[1]}, now=11.0) is None  # rank 2 is not there yet
    found = watch._stuck(others, now=11.0)
    assert found == (1, "it hangs in phase 1: no progress for 11 s (train.hang_timeout = 10)")
    others[1] = seen(1, 8, True)
    assert (watch._stuck(others, now=11.0) or (None,))[0] == 2  # all wait: the one behind


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rollout.engine=vllm", "rollout.engine = 'vllm' runs with one process, not 2"),
        ("method.name=influence_steer", "start it without torchrun"),
    ],
)
def test_what_several_ranks_cannot_do_is_refused(setting: str, message: str) -> None:
    config = load_config(None, [setting])
    with pytest.raises(ConfigError, match=message):
        check_several(config, 2)


def test_lora_and_split_weights_are_refused() -> None:
    config = load_config(None, ["model.lora_rank=4", "train.parallel=fsdp"])
    with pytest.raises(ConfigError, match="set train.parallel to \"ddp\""):
        check_several(config, 2)


def test_half_set_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"):
        rank_and_size()


def test_run_json_says_how_many_ranks_made_which_steps() -> None:
    assert ranks_of_run({}, 0, 1) == {} == ranks_of_run({}, 8, 1)
    two = ranks_of_run({}, 0, 2)
    assert two == {"ranks": [[0, 2]], "world_size": 2}
    assert ranks_of_run(two, 6, 2) == two
    assert ranks_of_run(two, 6, 1) == {"ranks": [[0, 2], [6, 1]], "world_size": 2}
    assert ranks_of_run({"ranks": [[0, 2], [6, 1]]}, 4, 2) == two  # back to before step 6
    assert ranks_of_run({}, 4, 2) == {"ranks": [[0, 1], [4, 2]], "world_size": 2}
