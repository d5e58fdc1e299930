"""Runs of several ranks, as torchrun would start them: forked from a server that has imported
everything, so that a rank costs a second."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from entropy_lab import cli
from entropy_lab.train import loop
from entropy_lab.train.launch import run_training

_PRELOAD = [
    "ranks",
    "entropy_lab.train.loop",
    "entropy_lab.train.parallel.shards",
    "tokenizers",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
]


class Job(NamedTuple):
    """One run: its overrides and directory; before: called in every rank with its number."""

    overrides: list[str]
    out: Path
    resume: bool = False
    before: Callable[[int], Any] | None = None


def run_ranks(jobs: Sequence[Job], size: int) -> None:
    """Train the jobs one after another by `size` ranks; AssertionError with what went wrong."""
    ranks = start_ranks(jobs, size)
    for process, errors in ranks:
        process.join(900)
        assert process.exitcode == 0, errors.read_text() if errors.exists() else process


def start_ranks(
    jobs: Sequence[Job], size: int, command: bool = False
) -> list[tuple[Any, Path]]:
    """(process, file of its stderr) of each rank. command: as the command line runs it."""
    from torch.distributed import TCPStore

    # One for each job, as torchrun has one for each start; they answer while this process lives.
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in jobs]
    _STORES.extend(stores)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    ranks = []
    for rank in range(size):
        errors = jobs[0].out.with_name(f"{jobs[0].out.name}.{rank}.err")
        errors.parent.mkdir(parents=True, exist_ok=True)
        ports = [store.port for store in stores]
        given = (list(jobs), rank, size, ports, str(errors), command)
        process = context.Process(target=_rank, args=given)
        process.start()
        ranks.append((process, errors))
    return ranks


_STORES: list[Any] = []


def _rank(
    jobs: list[Job], rank: int, size: int, ports: list[int], errors: str, command: bool
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    handle = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    os.dup2(handle, 1)
    faulthandler.register(signal.SIGUSR1)  # kill -USR1: where does it stand?
    code = 0
    for port, job in zip(ports, jobs, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        if job.before is not None:
            job.before(rank)
        if command:
            words = [w for text in job.overrides for w in ("--set", text)]
            words += ["--out", str(job.out)] + ["--resume"] * job.resume
            code = cli.run(["train", *words])
            continue
        try:
            run_training(None, job.overrides, job.out, resume=job.resume)
        except BaseException:
            traceback.print_exc()
            code = 1
            break
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def kill(rank: int) -> None:
    """Rank 1 is killed before its third step."""
    _at_third_step(rank, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hang(rank: int) -> None:
    """Rank 1 never comes back from its third step."""
    _at_third_step(rank, lambda: time.sleep(3600))


def allocate(rank: int) -> None:
    """Rank 1 asks for more memory than there is in its third step."""
    _at_third_step(rank, lambda: torch.empty(2**55))


def sleepy(rank: int) -> None:
    """Steps take long enough for a signal to come in between."""
    update = loop.update
    loop.update = lambda *args: (time.sleep(0.2), update(*args))[1]


def _at_third_step(rank: int, action: Callable[[], Any]) -> None:
    update = loop.update

    def planted(parts: Any, *args: Any) -> Any:
        if rank == 1 and parts.probe.step == 2:
            action()
        return update(parts, *args)

    loop.update = planted
