"""Tasks with verifiable rewards: the dict below is the registry."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from entropy_lab.errors import ConfigError
from entropy_lab.train.messages import explain, nearest
from entropy_lab.train.tasks.arithmetic import Arithmetic
from entropy_lab.train.tasks.base import Encode, Place, Problem, Prompt, Source, Task, prompt_text
from entropy_lab.train.tasks.countdown import Countdown
from entropy_lab.train.tasks.data import Data
from entropy_lab.train.tasks.split import held_out_problems
from entropy_lab.train.tasks.worked import WorkedTask, worked_task

TASKS: dict[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "countdown": Countdown,
    "data": Data,
}


def make_task(name: str, **params: Any) -> Task:
    """The task of that name with its fields set; raises ConfigError naming the nearest valid."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; {nearest(name, TASKS)}")
    cls: Any = TASKS[name]
    keys = [f.name for f in fields(cls)]
    for key in params:
        if key not in keys:
            raise ConfigError(f"unknown key task.{key} of task {name}; {nearest(key, keys)}")
    try:
        return cls(**params)
    except ValidationError as e:
        raise ConfigError(f"task.{explain(e)}") from None


__all__ = [
    "TASKS",
    "Arithmetic",
    "Countdown",
    "Data",
    "Encode",
    "Place",
    "Problem",
    "Prompt",
    "Source",
    "Task",
    "WorkedTask",
    "held_out_problems",
    "make_task",
    "prompt_text",
    "worked_task",
]
