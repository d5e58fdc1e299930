"""How a process joins the others of its run, and what a run of several cannot do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import make_method
from entropy_lab.probe.world import ALONE, Alone
from entropy_lab.train.config import Config
from entropy_lab.train.parallel.ranks import Ranks, is_out_of_memory, out_of_memory
from entropy_lab.train.parallel.watch import Watch, open_store
from entropy_lab.train.pretrained import device_of

_NEED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_and_size() -> tuple[int, int]:
    """What torchrun has set; (0, 1) without it. Raises ConfigError where that is not whole."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 0, 1
    missing = [name for name in _NEED if name not in os.environ]
    if missing or not (size.isdecimal() and os.environ["RANK"].isdecimal()):
        raise ConfigError(
            f"WORLD_SIZE = {size} says that there are several processes, but "
            f"{', '.join(missing) or 'RANK'} is not set as torchrun does: start them with torchrun "
            "--nproc-per-node N -m entropy_lab train ..."
        )
    return int(os.environ["RANK"]), int(size)


def check_several(config: Config, size: int) -> None:
    """Raise ConfigError for what several processes cannot do together."""
    if config.rollout.engine != "hf":
        raise ConfigError(
            f"rollout.engine = {config.rollout.engine!r} runs with one process, not {size}: set "
            'rollout.engine to "hf"'
        )
    method = make_method(config.method.name, **config.method.params)
    if "influence_marginal" in method.needs:
        raise ConfigError(
            f"method.name = {config.method.name!r} reads influence_marginal of a step before it is "
            f"taken, which one process can measure and {size} cannot: start it without torchrun"
        )
    if config.train.parallel == "fsdp" and config.model.lora_rank:
        raise ConfigError(
            f"model.lora_rank = {config.model.lora_rank} with train.parallel = 'fsdp': adapters "
            'are small enough for every process, so set train.parallel to "ddp"'
        )
    if config.train.max_log_gb:
        raise ConfigError(
            f"train.max_log_gb = {config.train.max_log_gb:g} counts the rows of one process, not "
            f"of {size}: bound the log with probe.every and probe.fraction instead"
        )


def ranks_of_run(info: Mapping[str, Any], step: int, size: int) -> dict[str, Any]:
    """What run.json says of the number of processes: ranks, [first step, how many] of each part of
    the run, and world_size, the most of them; nothing for a run of one process throughout."""
    parts = [p for p in info.get("ranks") or [] if p[0] < step]
    if step and not parts:
        parts = [[0, 1]]
    if not parts or parts[-1][1] != size:
        parts = [*parts, [step, size]]
    most = max(number for _, number in parts)
    return {"ranks": parts, "world_size": most} if most > 1 or info.get("ranks") else {}


@contextmanager
def said_once() -> Iterator[None]:
    """Leave it to rank 0 to say what every rank finds wrong with the settings."""
    try:
        yield
    except ConfigError:
        if int(os.environ.get("RANK", "0")):
            time.sleep(5.0)  # torchrun ends all ranks when one has ended
            raise SystemExit(2) from None
        raise


@contextmanager
def joined(config: Config, ended: Callable[[str, bool], None]) -> Iterator[Ranks | Alone]:
    """The world of this process while it trains: that of one, or all that torchrun has started.

    ended(status, first): called where the watch ends the process, before it does. An error that
    leaves this block is told to the other ranks. Raises ConfigError as `check_several`, RunError
    where the processes do not find one another.
    """
    rank, size = rank_and_size()
    if size == 1:
        yield ALONE
        return
    check_several(config, size)
    device = _device(config)
    limit = config.train.hang_timeout
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if _own_gpu(device) else "gloo",
            timeout=timedelta(seconds=2 * limit + 60),
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"rank {rank} of {size} cannot meet the others: {reason}") from error
    watch = Watch(rank, size, open_store, limit, ended)
    watch.start()
    if config.train.parallel == "fsdp":
        from entropy_lab.train.parallel.shards import Shards as Kind
    else:
        Kind = Ranks
    world = Kind(rank, size, watch, device)
    try:
        yield world
    except BaseException as error:
        world.abandon(error)
        if is_out_of_memory(error):
            raise RunError(f"rank {rank}: {out_of_memory(error)}") from error
        raise
    finally:
        world.close()


def _device(config: Config) -> torch.device:
    """This rank's device: of several GPUs the one of its local rank."""
    device = device_of(config.model.device)
    if device.type != "cuda":
        return device
    number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _own_gpu(device: torch.device) -> bool:
    """Whether each process of this machine has a GPU of its own, which NCCL needs."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    return device.type == "cuda" and local <= torch.cuda.device_count()
