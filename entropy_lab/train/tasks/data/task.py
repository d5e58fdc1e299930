"""Problems from the user's own files: Parquet, JSON lines, folders of `datasets`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks.base import Encode
from entropy_lab.train.tasks.data.load import Loaded, Reading, load_data
from entropy_lab.train.tasks.data.order import Order
from entropy_lab.train.tasks.data.source import DataSource


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(_listed)]
Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Data:
    """Problems of data files, which `train` and `validation` name: a path or a list of paths.

    A path is a file (.parquet, .jsonl, .ndjson, .json, .arrow), a pattern with *, or a folder of
    them. weights: for each path of `train`, how often its rows come up in an epoch (default 1).
    prompt_key, answer_key, source_key, extra_key: columns, "a.b" for b within a; an empty one is
    looked for, and so are the tests of LiveCodeBench, MBPP, HumanEval and APPS. chat: text prompts
    become the user's message; suffix: added to every prompt. max_prompt_tokens: longer prompts are
    left out (0: none). bad_rows: "refuse" or "skip" those without prompt or answer. shuffle: each
    epoch is another order.
    """

    name: ClassVar[str] = "data"
    train: Paths = Field(default_factory=list)
    validation: Paths = Field(default_factory=list)
    weights: list[Weight] = Field(default_factory=list)
    prompt_key: str = ""
    answer_key: str = ""
    source_key: str = "data_source"
    extra_key: str = "extra_info"
    chat: bool = False
    suffix: str = ""
    max_prompt_tokens: Annotated[int, Field(ge=0)] = 0
    bad_rows: Literal["refuse", "skip"] = "refuse"
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("task data needs files to train on: set task.train to their paths")
        if self.weights and len(self.weights) != len(self.train):
            raise ConfigError(
                f"task.weights has {len(self.weights)} numbers for the {len(self.train)} paths of "
                "task.train: give one for each, or none"
            )

    @property
    def reading(self) -> Reading:
        """The part of the settings that says how a row is read."""
        return Reading(
            self.prompt_key, self.answer_key, self.source_key, self.extra_key, self.chat,
            self.suffix, self.max_prompt_tokens, self.bad_rows,
        )  # fmt: skip

    def source(self, encode: Encode) -> DataSource:
        """Read all files; raises ConfigError as `load_data` does."""
        train = [load_data(path, self.reading, encode) for path in self.train]
        weights = self.weights or [1.0] * len(train)
        sizes = tuple(len(part.problems) for part in train)
        return DataSource(
            train, self._validation(encode), Order(sizes, tuple(weights), self.shuffle)
        )

    def validation_source(self, encode: Encode) -> DataSource:
        """`source` without the files to train on: nothing can be drawn from it."""
        return DataSource([], self._validation(encode), Order((), ()))

    def _validation(self, encode: Encode) -> list[Loaded]:
        return [load_data(path, self.reading, encode) for path in self.validation]

    def check_evaluable(self, n: int) -> None:
        """Raise ConfigError where no file is named for it; files are read by `source`."""
        if not self.validation:
            raise ConfigError("task data has none: set task.validation to files")
