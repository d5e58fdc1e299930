"""Which problems are held out: a fixed share of them, chosen by hash, in every run the same."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks.base import Problem

if TYPE_CHECKING:
    from entropy_lab.train.tasks.worked import WorkedTask


def _share(value: float) -> float:
    # Both sides are found by drawing until the side is right, so neither may be next to nothing.
    if value == 0 or 0.01 <= value <= 0.9:
        return value
    raise PydanticCustomError("held_out_share", "Input should be 0 or from 0.01 to 0.9")


HeldOutShare = Annotated[float, AfterValidator(_share)]


def is_held_out(key: str, share: float) -> bool:
    """Whether the problem `key` belongs to the held-out share: hash(key) < share, hash in [0, 1).

    The hash is 64 bits of BLAKE2b: no seed and no setting but `share` enters, and a larger share
    holds out all that a smaller one does. Problems that differ in the order of their numbers
    alone should have one key, or the answer to one would be learned from the other.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def refuse_no_split(task: str, share: float) -> None:
    """Raise ConfigError where nothing is held out."""
    if not share:
        raise ConfigError(
            f"task {task} holds no problems out: set task.held_out_share, for example to 0.1"
        )


def enough(found: list[Problem], n: int, task: str, share: float) -> list[Problem]:
    """`found`, if these are the n held-out problems that were asked for; else ConfigError."""
    if len(found) < n:
        raise ConfigError(
            f"task {task} gave {len(found)} held-out problems at held_out_share = {share}, fewer "
            f"than the {n} asked for: ask for fewer or raise task.held_out_share"
        )
    return found


def nothing_to_train_on(task: str, share: float) -> ConfigError:
    return ConfigError(
        f"task {task} has no problem left to train on at held_out_share = {share}: lower "
        "task.held_out_share"
    )


def held_out_problems(task: WorkedTask, n: int) -> list[Problem]:
    """The n problems of an evaluation: the same in every run of equal task settings.

    Raises ConfigError where the task holds fewer out.
    """
    return task.held_out(n, random.Random(f"{task.name} held-out problems"))
