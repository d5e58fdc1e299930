"""The [reward] section of a run's settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class RewardConfig:
    """name: "task" (the task's own), "math", "code", "random", "constant" or file.py:callable.

    workers: processes that grade; timeout: seconds that one answer may take, or
    one test of "code" (LiveCodeBench gives 6). format_weight:
    added where an answer is stated as asked for; overlong_buffer: tokens before max_tokens over
    which a penalty rises to overlong_penalty (0: off). value: the reward of "constant", and of
    "random" with that probability (else 0). For "code": memory_mb of one program, total_timeout of
    all tests of one response, partial: the share of tests passed instead of all or nothing;
    allow_unsandboxed accepts to run code of the model where nothing isolates it.
    """

    name: str = "task"
    workers: Annotated[int, Field(ge=1, le=256)] = 2
    timeout: Annotated[float, Field(ge=0.1, le=3600)] = 3.0
    format_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    overlong_buffer: Annotated[int, Field(ge=0)] = 0
    overlong_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    value: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    memory_mb: Annotated[int, Field(ge=16)] = 1024
    total_timeout: Annotated[float, Field(ge=0.1, le=36000)] = 60.0
    partial: bool = False
    allow_unsandboxed: bool = False
