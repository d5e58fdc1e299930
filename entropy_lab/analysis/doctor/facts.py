"""What the checks look at: the small tables of a run, and its token rows one step at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.doctor.block import Block, Floats
from entropy_lab.errors import RunError
from entropy_lab.record import Run

_SAMPLES = (
    "step group uid reward advantage length truncated inclusion_prob trained minibatch micro "
    "prompt_width response_width"
).split()
_OURS = {"rollout", "train", "probe"}  # sections that only the bundled trainer's settings have


@dataclass
class Facts:
    """A run as the checks see it; per_step and uids are filled by the pass over token rows.

    per_step: one row per step with token rows: step, rows, held_out, age, entropy, dH (means of
    training rows), dH_std, dH_rms, clip_high, clip_low. uids: responses with training rows.
    unread: why a table or the rest of the rows could not be read. vocab: size of the vocabulary,
    0 where nothing says it.
    """

    run: Run
    steps: pd.DataFrame
    samples: pd.DataFrame
    vocab: int = 0
    per_step: pd.DataFrame = field(default_factory=pd.DataFrame)
    uids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    unread: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, run: Run, vocab: int = 0) -> Facts:
        """Raises RunError where no step is finished; tables that cannot be read stay empty."""
        run.metrics()
        unread: list[str] = []
        steps = _table(lambda: run.steps(), unread)
        samples = _table(
            lambda: run.samples([c for c in _SAMPLES if c in run.columns("samples")]), unread
        )
        said = run.info.get("vocab_size") or run.meta.get("vocab_size") or vocab
        return cls(run, steps, samples, int(said), unread=unread)

    @property
    def config(self) -> dict[str, Any]:
        return self.run.info.get("config") or {}

    @property
    def bundled(self) -> bool:
        """The bundled trainer wrote it, so its conventions hold exactly."""
        return self.config.keys() >= _OURS

    @property
    def finished(self) -> bool:
        return self.run.info.get("status") == "finished"

    @property
    def method(self) -> dict[str, Any]:
        return self.run.info.get("method") or {}

    @cached_property
    def full_from(self) -> int | None:
        """The first step after which a limit on the log's size left rows out; None without one."""
        lines = self.run.metrics()
        if "log_full" not in lines or not (full := lines["log_full"].eq(True)).any():
            return None
        return int(lines.loc[full, "step"].iloc[0])

    def bound(self, name: str) -> float | None:
        """A clip bound of the method; None where it has none of that name, inf where it is off."""
        if name not in self.method:
            return None
        value = self.method[name]  # JSON has no infinity: "inf" or null
        return math.inf if value is None else float(value)

    @cached_property
    def ranks(self) -> list[int]:
        """Ranks that have a folder of token rows."""
        folders = (self.run.path / "tokens").glob("rank=*")
        return sorted(int(m[1]) for p in folders if (m := re.fullmatch(r"rank=(\d+)", p.name)))

    @cached_property
    def cadence(self) -> dict[str, float]:
        """every, fraction, seed as the files' footer states them; {} where it does not."""
        pairs = re.findall(r"(\w+)=([\d.eE+-]+)", self.run.meta.get("sampling", ""))
        return {name: float(value) for name, value in pairs}

    @cached_property
    def step_row(self) -> dict[int, dict[str, Any]]:
        """The row of the steps table by step."""
        rows = self.steps.to_dict("records")
        return {int(r["step"]): {str(k): v for k, v in r.items()} for r in rows}

    def step_value(self, step: int, name: str) -> float:
        value = self.step_row.get(step, {}).get(name)
        return float(value) if isinstance(value, int | float | np.number) else math.nan

    def step_column(self, name: str) -> pd.Series:
        """A numeric column of the steps table by step; empty where there is none."""
        if name not in self.steps:
            return pd.Series(dtype=float)
        values = pd.to_numeric(self.steps[name], errors="coerce")
        return pd.Series(values.to_numpy(float), index=self.steps["step"].astype(int))

    @cached_property
    def _by_uid(self) -> pd.DataFrame | None:
        if "uid" not in self.samples or self.samples["uid"].duplicated().any():
            return None
        return self.samples.set_index("uid").sort_index()

    def of_responses(self, uid: NDArray[np.int64], name: str) -> Floats | None:
        """A samples column for these responses, NaN for one without; None: it cannot be said."""
        if self._by_uid is None or name not in self._by_uid:
            return None
        found = self._by_uid[name].reindex(uid)
        return pd.to_numeric(found, errors="coerce").to_numpy(float, na_value=np.nan)


def _table(read: Callable[[], pd.DataFrame], unread: list[str]) -> pd.DataFrame:
    try:
        return read()
    except RunError as error:  # the file checks say what is missing or damaged
        if "damaged" in str(error):
            unread.append(str(error))
        return pd.DataFrame()


def blocks(facts: Facts) -> Iterator[Block]:
    """Every step's rows; stops, with the reason in facts.unread, where a part is damaged."""
    previous = None
    try:
        for step, table in facts.run.iter_steps():
            previous = Block.of(step, table, previous)
            yield previous
    except RunError as error:
        facts.unread.append(str(error))
