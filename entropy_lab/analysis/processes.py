"""Calls that do not depend on one another, in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from entropy_lab.errors import ConfigError

T = TypeVar("T")


def side_by_side(call: Callable[..., T], each: Sequence[tuple[Any, ...]], jobs: int = 1) -> list[T]:
    """call(*arguments) for each of `each`, in order, at most `jobs` at a time.

    With jobs=1 all in this process. Processes are spawned, not forked, so that they do not depend
    on threads of this one: `call` is a function of a module, and a script that asks for more than
    one job does so under `if __name__ == "__main__"`. Raises ConfigError for jobs < 1 and whatever
    the first failing call raises.
    """
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs} is not valid: give the number of processes, at least 1")
    if min(jobs, len(each)) == 1:
        return [call(*arguments) for arguments in each]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(each)), mp_context=context) as pool:
        futures = [pool.submit(call, *arguments) for arguments in each]
        try:
            return [future.result() for future in futures]
        except BaseException:  # an error of one run, or Ctrl-C: the others need not be finished
            pool.shutdown(wait=False, cancel_futures=True)
            raise
